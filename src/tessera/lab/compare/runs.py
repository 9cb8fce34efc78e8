"""Answers and trainings of `tessera compare`, kept on disk until anything in this package, or the part in question, changes."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera import registry
from tessera.config import to_dict
from tessera.errors import UserError
from tessera.evaluation import provenance
from tessera.evaluation.intervals import Interval, paired_bootstrap
from tessera.lab.claims import part_module
from tessera.lab.fingerprints.named import PACKAGE, source_hash

if TYPE_CHECKING:
    from tessera.evaluation.answering import Generates
    from tessera.evaluation.result import Result
    from tessera.recipes.recipe import Recipe


class Runs:
    """Evaluations and trainings, kept in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def evaluate(
        self,
        model: Any,
        processor: Any,
        parts: Sequence[registry.Part],
        *,
        types: Sequence[str],
        n: int,
        world: Mapping[str, Any],
        plug: Mapping[str, Mapping[str, Any]] | None = None,
        answers: Generates | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Result:
        """The model on `n` questions of the world's test split, with the parts of `plug` in it or with `answers` in its place.

        parts: those that act, whose files the result depends on; options: settings of what answers.
        """
        from tessera.evaluation.harness import evaluate
        from tessera.evaluation.items import EvaluationConfig
        from tessera.evaluation.result import load_result
        from tessera.generation.host_generate import HostGenerator
        from tessera.hosts.plug import attach, part_named
        from tessera.world import WorldConfig

        config = EvaluationConfig(world=WorldConfig(**{"split": "test", **world}), types=tuple(types), n=n)
        settings = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
        key = [to_dict(config), provenance.weights_hash(model), settings, plug, options, _sources(parts)]
        path = self._path("evaluate", key).with_suffix(".json")
        if path.is_file():
            return load_result(path)
        if answers is None:  # plain or plugged, one engine answers
            with attach(model).plug(*(part_named(name, chosen) for name, chosen in (plug or {}).items())):
                result = evaluate(model, processor, config, answers=HostGenerator(model, processor))
        else:
            result = evaluate(model, processor, config, answers=answers)
        path.parent.mkdir(parents=True, exist_ok=True)
        result.save(path)
        return result

    def train(self, recipe: Recipe, parts: Sequence[registry.Part]) -> tuple[Any, Any]:
        """The recipe's model after its training, and its processor. Raises `KeyboardInterrupt` if a signal comes."""
        from tessera.models import reference
        from tessera.training.run import run

        folder = self._path("train", [to_dict(recipe), _sources(parts)])
        if not (folder / "model" / "config.json").is_file():
            result, _, _ = run(replace(recipe, training=replace(recipe.training, progress=False)), folder)
            if result.interrupted:
                raise KeyboardInterrupt
        return reference.load(folder / "model")

    def _path(self, kind: str, key: Any) -> Path:
        whole = json.dumps([kind, key, source_hash()], sort_keys=True, default=str)
        return self.folder / hashlib.sha256(whole.encode()).hexdigest()[:24]


def difference(first: Result, second: Result) -> Interval:
    """Mean accuracy of `first` minus `second` over all questions, with its 95 % interval (paired bootstrap over samples).

    Raises `UserError` unless both answered the same questions.
    """
    from tessera.evaluation.result import words

    if first.items != second.items:
        raise UserError("the two results are of different questions; evaluate both with the same types, n, seed and world.")
    pairs = [(words(t.outcomes), words(second.types[name].outcomes)) for name, t in first.types.items()]
    return paired_bootstrap([w for a, _ in pairs for w in a], [w for _, b in pairs for w in b])


def plugged_copy(stack: ExitStack, model: Any, name: str, options: Mapping[str, Any]) -> Any:
    """A host with one part on a copy of the model that shares its weights, until the stack is closed."""
    from tessera.hosts.plug import plug

    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return stack.enter_context(plug(copy.deepcopy(model, shared), name, **options))


def _sources(parts: Sequence[registry.Part]) -> dict[str, str]:
    """Hashes of third parties' parts; those of this package are in the hash of the whole."""
    found = {}
    for part in parts:
        path = Path(str(part_module(part).__file__))
        if not path.resolve().is_relative_to(PACKAGE):
            files = sorted(path.parent.rglob("*.py")) if path.name == "__init__.py" else [path]
            found[f"{part.socket}/{part.name}"] = hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest()[:16]
    return found
