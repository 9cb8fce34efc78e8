"""What claims measure with: reference models, worlds, budgeted training, controls, timing, comparisons.

    @claim("at a quarter of the tokens accuracy stays", kind="effect")
    def keeps_accuracy(lab: Lab) -> Finding:
        model, processor = lab.reference("nano")
        whole = lab.evaluate(model, processor, types=TYPES)
        pruned = lab.evaluate(model, processor, types=TYPES, plug={"fopru": {"keep": 0.25}})
        gain = lab.difference(pruned, whole)

Every evaluation and training run is kept on disk under the hash of all that it depends on, so that claims of several parts share
baselines and a run again pays for what has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tessera import registry
from tessera.config import to_dict
from tessera.errors import UserError
from tessera.evaluation import provenance
from tessera.evaluation.intervals import Interval, paired_bootstrap
from tessera.evaluation.items import EvaluationConfig
from tessera.evaluation.result import Result, load_result, words
from tessera.io import write_json
from tessera.lab import evidence
from tessera.lab.claim import Finding
from tessera.world import World, WorldConfig

if TYPE_CHECKING:
    from tessera.bench.sides import Ratio
    from tessera.evaluation.answering import Generates
    from tessera.recipes.recipe import Recipe

Plugs: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Part name -> its options; all are plugged at once."""
Model: TypeAlias = "tuple[Any, Any]"
"""A model and its processor."""

SEEDS = (0, 1, 2)


def cache_folder() -> Path:
    """Where runs are kept: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tessera" / "lab"


class Lab:
    """One run of claims.

    used   names of the reference models that claims have asked for
    saved  seconds that runs took which were found on disk, when they were made: what a claim costs is counted with them
    """

    seeds: tuple[int, ...] = SEEDS

    def __init__(self, cache: Path | None = None, threads: int = 0) -> None:
        """cache: where runs are kept (the user's cache folder by default); threads: of torch, 0 as it is set."""
        self.cache = cache_folder() if cache is None else cache
        self.used: set[str] = set()
        self.saved = 0.0
        self._loaded: dict[str, Model] = {}
        if threads:
            import torch

            torch.set_num_threads(threads)

    # What there is

    def reference(self, name: str, *, copy: bool = False) -> Model:
        """A shipped reference model and its processor, in evaluation mode; `copy`: one of its own that may be changed."""
        from copy import deepcopy

        from tessera.models import reference

        self.used.add(name)
        if name not in self._loaded:
            self._loaded[name] = reference.load(name)
        model, processor = self._loaded[name]
        return (deepcopy(model), processor) if copy else (model, processor)

    def world(self, **options: Any) -> World:
        """`tessera.world.World` of these options; the test split by default."""
        return World(**{"split": "test", **options})

    # What a part for hosts does

    def hosted(self, name: str, families: Sequence[str] = ("llava", "qwen2_5_vl", "gemma3")) -> Finding:
        """The finding of an exact claim: on tiny models of some families, set to do nothing the part `name` changes no bit; a
        cached generation equals one that computes everything again; the model is as before when the part is taken out.

        A family that the part refuses, with its reason, is left out; if all do, no check is left.
        """
        from tessera.hosts.check import Bench
        from tessera.hosts.plug import find

        part = find(name)
        cells = [Bench(family, part.target.images).cell(name, part.socket, part.target) for family in families]
        able = [cell for cell in cells if cell.state != "refused"]
        return Finding(
            checks={f"identity, cache and undoing on {cell.family}": cell.state == "true" for cell in able},
            measured={
                f"{cell.family}: cached differs by": float(cell.measured["cached differs by"])
                for cell in able
                if "cached differs by" in cell.measured
            },
            note=" ".join(cell.reason for cell in cells if cell.reason),
            shape="6 layers of width 64, float32, random weights",
        )

    # What a model can do

    def evaluate(
        self,
        model: Any,
        processor: Any,
        *,
        types: Sequence[str] = (),
        n: int = 600,
        seed: int = 0,
        plug: Plugs | None = None,
        blind: bool = False,
        world: Mapping[str, Any] | None = None,
        answers: Generates | None = None,
        answers_key: Any = None,
    ) -> Result:
        """`model` on `n` questions of the world's test split, with the parts of `plug` in it; see `evaluation.evaluate`.

        answers: what answers in the model's place, instead of `plug`; answers_key: plain data that tells it from all others
        (without it nothing is kept on disk).
        """
        from tessera.evaluation.harness import evaluate

        size = getattr(model, "image_size", None)
        options: dict[str, Any] = {"split": "test", **({"width": size, "height": size} if isinstance(size, int) else {})}
        config = EvaluationConfig(world=WorldConfig(**{**options, **(world or {})}), types=tuple(types), n=n, seed=seed)
        settings = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
        key = self._key(
            "evaluate",
            to_dict(config),
            provenance.weights_hash(model),
            settings,
            self._parts_in(settings),
            blind,
            self.plugged(plug),
            answers_key,
            self._code("models"),
            versions=("torch", "transformers"),
        )
        keeps = answers is None or answers_key is not None
        kept = self._kept(key, ".json") if keeps else None
        if kept is not None:
            found = load_result(kept)
            self.saved += found.seconds
            return found
        if plug:
            from tessera.hosts.host_generate import HostGenerator
            from tessera.hosts.plug import attach, part_named

            with attach(model).plug(*(part_named(name, options) for name, options in plug.items())):
                result = evaluate(model, processor, config, blind=blind, answers=HostGenerator(model, processor))
        else:
            result = evaluate(model, processor, config, blind=blind, answers=answers)
        if keeps:
            result.save(self._path(key, ".json"))
        return result

    def difference(self, first: Result, second: Result) -> Interval:
        """Mean accuracy of `first` minus `second` over all questions, with its 95 % interval (paired bootstrap over samples).

        Raises `UserError` unless both answered the same questions.
        """
        if first.items != second.items:
            raise UserError("the two results are of different questions; evaluate both with the same types, n, seed and world.")
        pairs = [(words(t.outcomes), words(second.types[name].outcomes)) for name, t in first.types.items()]
        return paired_bootstrap([w for a, _ in pairs for w in a], [w for _, b in pairs for w in b])

    def train(self, recipe: Recipe, *, seed: int | None = None) -> Model:
        """The recipe's model after its training, with another seed if one is given; kept on disk, so trained once."""
        from tessera.models import reference
        from tessera.training.run import run

        if seed is not None:
            recipe = replace(recipe, training=replace(recipe.training, seed=seed))
        self.used.update(name for name in recipe.start.values() if name in reference.REFERENCES)
        sources = {
            name: evidence.source_hash(reference.reference_folder(name) if name in reference.REFERENCES else Path(name))
            for name in sorted(set(recipe.start.values()))
        }
        plain = to_dict(recipe)
        folder = self.folder("train", plain, sources, self._parts_in(plain))
        cost = folder / "seconds.json"
        if (folder / "model" / "config.json").is_file():
            if cost.is_file():
                self.saved += float(json.loads(cost.read_text(encoding="utf-8")))
        else:
            begin = time.perf_counter()
            result, _, _ = run(replace(recipe, training=replace(recipe.training, progress=False)), folder)
            if result.stopped:
                raise KeyboardInterrupt
            write_json(cost, round(time.perf_counter() - begin, 2))
        return reference.load(folder / "model")

    # What it costs

    def timing(self, slow: Callable[[], Any], fast: Callable[[], Any], rounds: int = 7) -> Ratio:
        """How many times longer `slow` takes than `fast`, in turns in this process."""
        from tessera.bench.sides import interleaved, ratio

        taken = interleaved({"slow": slow, "fast": fast}, rounds)
        return ratio(taken["slow"], taken["fast"])

    def flops(self, work: Callable[[], Any]) -> int:
        """Floating-point operations of `work`, matrix products and attention, as torch's counter sees them."""
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter, torch.no_grad():
            work()
        return int(counter.get_total_flops())

    def shape(self) -> str:
        """Threads and processor, for the `shape` of a finding."""
        import torch

        return f"{torch.get_num_threads()} threads, {provenance.machine()}"

    # Keeping

    def folder(self, *parts: Any) -> Path:
        """Where something is kept that depends on plain data `parts`, on how models are made and trained, and on the world."""
        return self._path(self._key(*parts, self._code("training", "models", "data")), "")

    def plugged(self, plug: Plugs | None) -> list[Any]:
        """Names, options and hashes of plugged parts, as plain data that results depend on."""
        from tessera.hosts.plug import find

        return [(name, dict(options), evidence.part_hash(find(name))) for name, options in (plug or {}).items()]

    def _parts_in(self, settings: Any) -> dict[str, str]:
        """Hashes of the parts that plain data names under "kind", by `socket/name`; of parts of one name all count."""
        kinds = set(_kinds(settings))
        found = {}
        for socket in registry.SOCKETS:
            for name in kinds.intersection(registry.names(socket)):
                found[f"{socket}/{name}"] = evidence.part_hash(registry.get(socket, name))
        return found

    def _code(self, *rooms: str) -> str | None:
        return evidence.source_hash(*(evidence.PACKAGE / room for room in rooms), only=("*.py",))

    def _key(self, *parts: Any, versions: Iterable[str] = ()) -> str:
        known = provenance.versions()
        whole = [*parts, {name: known.get(name) for name in versions}, self._code("evaluation", "hosts", "nn", "world")]
        return hashlib.sha256(json.dumps(whole, sort_keys=True, default=str).encode()).hexdigest()[:24]

    def _path(self, key: str, suffix: str) -> Path:
        path = self.cache / f"{key}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _kept(self, key: str, suffix: str) -> Path | None:
        path = self.cache / f"{key}{suffix}"
        return path if path.is_file() else None


def _kinds(value: Any) -> Iterable[str]:
    """Every text that stands under a key "kind" in plain data."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key == "kind" and isinstance(inner, str):
                yield inner
            yield from _kinds(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _kinds(inner)


def mean(values: Sequence[float]) -> float:
    """The mean over seeds."""
    return statistics.fmean(values)


def spread(values: Sequence[float]) -> float:
    """The standard deviation over seeds, 0 for one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0


def plain(result: Result) -> dict[str, Any]:
    """A result as plain data."""
    return asdict(result)
