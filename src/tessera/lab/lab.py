"""The tools of protocols: reference models, one engine that answers, cached results, counting and timing.

Everything is computed in float32 with a fixed number of threads, so that a verdict does not depend on the processor.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tessera.io import write_json
from tessera.lab import behaviour
from tessera.lab.experiment import Arm
from tessera.lab.judge import Outcomes

if TYPE_CHECKING:
    from tessera.lab.protocols.base import Protocol
    from tessera.measure.sides import Ratio

Model: TypeAlias = "tuple[Any, Any]"
"""A model in evaluation mode and its processor."""


def cache_folder() -> Path:
    """Where results are kept: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tessera" / "lab"


class Lab:
    """One run of claims.

    cache       where outcomes and derived models are kept
    saved       seconds that was spent, when they were made, on outcomes which were found on disk
    behaviours  fingerprints that were computed so far
    """

    def __init__(self, cache: Path | None = None, threads: int = 1) -> None:
        """cache: the user's cache folder by default; threads: of torch, 0 leaves them as they are."""
        self.cache = cache_folder() if cache is None else cache
        self.saved = 0.0
        self.behaviours: dict[str, behaviour.Numbers] = {}
        self._loaded: dict[str, Model] = {}
        self._weights: dict[str, str] = {}
        if threads:
            import torch

            torch.set_num_threads(threads)

    # Models

    def reference(self, name: str, *, copy: bool = False) -> Model:
        """A shipped reference model, or one derived from them (`lab.derived`), in float32 and evaluation mode; `copy`: one of its
        own that may be changed. Raises `UserError` for an unknown name."""
        from copy import deepcopy

        from tessera.lab import derived
        from tessera.models import reference

        if name not in self._loaded:
            made = derived.make(self, name) if name in derived.DERIVED else reference.load(name)
            self._loaded[name] = made
        model, processor = self._loaded[name]
        return (deepcopy(model), processor) if copy else (model, processor)

    def weights(self, name: str) -> str:
        """Hash of a reference model's weights; of a derived one the recipe's name with the hashes of what it is made from."""
        from tessera.evaluation.provenance import weights_hash
        from tessera.lab import derived

        if name not in self._weights:
            if name in derived.DERIVED:
                recipe = derived.DERIVED[name]
                self._weights[name] = f"{name} {recipe.version} of {self.weights(recipe.source)}"
            else:
                self._weights[name] = weights_hash(self.reference(name)[0])
        return self._weights[name]

    # Outcomes

    def outcomes(self, protocol: Protocol, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """What the protocol measures of an arm, kept on disk: measured again only where something behaves otherwise."""
        key = [protocol.plain(), arm.plain(), look, first, count]

        def make() -> dict[str, Any]:
            return protocol.measure(self, arm, look, first, count).plain()

        return Outcomes.parse(self.kept(key, protocol.depends(arm), make))

    def kept(self, key: Any, depends: Sequence[str], make: Callable[[], Any]) -> Any:
        """`make()`, plain data, kept under `key` as long as what it depends on behaves as it did.

        Two processes that want the same wait for one another, so that it is made once.
        """
        name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]
        path = self.cache / f"{name}.json"
        now = {name: behaviour.of(name, self) for name in depends}
        with locked(path.with_suffix(".lock")):
            if (found := _read(path)) is not None and _same(found["depends"], now):
                self.saved += found["seconds"]
                return found["value"]
            begin, saved = time.perf_counter(), self.saved
            value = make()
            seconds = time.perf_counter() - begin + self.saved - saved
            write_json(path, {"key": key, "depends": now, "seconds": round(seconds, 2), "value": value})
            return value

    def folder(self, *key: Any) -> Path:
        """A folder of kept files (trained models) of its own for plain data `key`."""
        name = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]
        return self.cache / name

    # What it costs

    def timing(self, slow: Callable[[], Any], fast: Callable[[], Any], rounds: int = 7) -> Ratio:
        """How many times longer `slow` takes than `fast`, in turns in this process."""
        from tessera.measure.sides import interleaved, ratio

        taken = interleaved({"slow": slow, "fast": fast}, rounds)
        return ratio(taken["slow"], taken["fast"])

    def flops(self, work: Callable[[], Any]) -> int:
        """Floating-point operations of `work`, matrix products and attention, as torch's counter sees them."""
        import torch

        from tessera.measure.counting import flops

        with torch.no_grad():
            return flops(work)

    def shape(self) -> str:
        """Threads, number type and processor, for what is timed."""
        import torch

        from tessera.evaluation import provenance

        return f"float32, {torch.get_num_threads()} threads, {provenance.machine()}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file, for which other processes wait; it ends with the process whatever happens."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _read(path: Path) -> dict[str, Any] | None:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"depends", "seconds", "value"} <= found.keys() else None


def _same(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    return before.keys() == now.keys() and not any(behaviour.differences(before[name], now[name]) for name in now)
