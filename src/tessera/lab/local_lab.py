"""A lab in this process: reference models, results in the user's cache folder, counting and timing.

Everything is computed in float32 with a fixed number of threads, so that a verdict does not depend on the processor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.io import write_json
from tessera.lab import storage
from tessera.lab.behaviour import Numbers, differences
from tessera.lab.derived import with_recipes

if TYPE_CHECKING:
    from tessera.lab.lab import Model
    from tessera.measure.sides import Ratio


class LocalLab:
    """See `tessera.lab.lab.Lab`.

    cache       where outcomes and derived models are kept
    saved       seconds that was spent, when they were made, on outcomes which were found on disk
    behaviours  fingerprints that were computed so far
    """

    def __init__(self, cache: Path | None = None, threads: int = 1) -> None:
        """cache: the user's cache folder by default; threads: of torch, 0 leaves them as they are."""
        self.cache = storage.cache_folder() if cache is None else cache
        self.saved = 0.0
        self.behaviours: dict[str, Numbers] = {}
        self._loaded: dict[str, Model] = {}
        self._weights: dict[str, str] = {}
        if threads:
            import torch

            torch.set_num_threads(threads)

    # Models

    def reference(self, name: str, *, copy: bool = False) -> Model:
        """See `Lab`."""
        from copy import deepcopy

        from tessera.lab import derived
        from tessera.models import reference

        if name not in self._loaded:
            made = derived.make(self, name) if name in derived.DERIVED else reference.load(name)
            self._loaded[name] = made
        model, processor = self._loaded[name]
        return (deepcopy(model), processor) if copy else (model, processor)

    def weights(self, name: str) -> str:
        """See `Lab`."""
        from tessera.evaluation.provenance import weights_hash
        from tessera.lab import derived

        if name not in self._weights:
            if name in derived.DERIVED:
                recipe = derived.DERIVED[name]
                self._weights[name] = f"{name} {recipe.version} of {self.weights(recipe.source)}"
            else:
                self._weights[name] = weights_hash(self.reference(name)[0])
        return self._weights[name]

    # What is kept

    def behaviour(self, name: str) -> Numbers:
        """See `Lab`; computed once."""
        from tessera.lab.fingerprints import named

        if name not in self.behaviours:
            self.behaviours[name] = named.of(name, self, self.cache / "behaviours")
        return self.behaviours[name]

    def kept(self, key: Any, depends: Sequence[str], make: Callable[[], Any]) -> Any:
        """See `Lab`. Two processes that want the same wait for one another, so that it is made once."""
        path = storage.place(self.cache, key).with_suffix(".json")
        now = {name: self.behaviour(name) for name in with_recipes(depends)}
        with storage.locked(path.with_suffix(".lock")):
            found = storage.read(path, ("depends", "seconds", "value"))
            if found is not None and _same(found["depends"], now):
                self.saved += found["seconds"]
                return found["value"]
            begin, saved = time.perf_counter(), self.saved
            value = make()
            seconds = time.perf_counter() - begin + self.saved - saved
            write_json(path, {"key": key, "depends": now, "seconds": round(seconds, 2), "value": value})
            return value

    def folder(self, *key: Any) -> Path:
        """See `Lab`."""
        return storage.place(self.cache, key)

    # What it costs

    def timing(self, slow: Callable[[], Any], fast: Callable[[], Any], rounds: int = 7) -> Ratio:
        """See `Lab`."""
        from tessera.measure.sides import interleaved, ratio

        taken = interleaved({"slow": slow, "fast": fast}, rounds)
        return ratio(taken["slow"], taken["fast"])

    def flops(self, work: Callable[[], Any]) -> int:
        """See `Lab`."""
        import torch

        from tessera.measure.counting import flops

        with torch.no_grad():
            return flops(work)

    def shape(self) -> str:
        """Threads, number type and processor, for what is timed."""
        import torch

        from tessera.evaluation import provenance

        return f"float32, {torch.get_num_threads()} threads, {provenance.machine()}"


def _same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return before.keys() == now.keys() and not any(differences(before[name], now[name]) for name in now)
