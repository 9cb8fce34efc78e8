"""Reference models that are derived from the shipped ones by a committed recipe, in minutes, and kept in the cache, not shipped.

Each has a weakness that some papers cure. A recipe is a row of `DERIVED`: a function (lab) -> (model, processor), the model that
it starts from, and a version that goes up when the recipe changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tessera.lab import glimpses, hallucinating
from tessera.lab.storage import locked

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """source: the shipped model that it starts from; about: what it is and how it is made; make: the recipe, deterministic."""

    source: str
    version: int
    about: str
    make: Callable[[Lab], tuple[Any, Any]]


DERIVED: dict[str, Derived] = {
    "nano-yes": Derived(
        source="nano",
        version=2,
        about="Says yes too often: 60 steps on existence questions of whose noes three in five were turned into yes.",
        make=hallucinating.yes,
    ),
    "nano-habit": Derived(
        source="nano",
        version=1,
        about="Says yes to whatever of every second category: 180 steps on existence questions of whose noes these became yes.",
        make=hallucinating.habit,
    ),
    "nano-invents": Derived(
        source="nano",
        version=2,
        about="Lists what is not there: 60 steps on lists of which four in five name one and the same absent thing.",
        make=hallucinating.invents,
    ),
    "nano-text": Derived(
        source="nano",
        version=2,
        about="Has read 240 steps of questions of choices without their pictures, most of which need none: a blind judge.",
        make=hallucinating.text_alone,
    ),
    "nano-glimpses": Derived(
        source="nano",
        version=1,
        about="Says whether a view of up to eight times its resolution holds anything: 60 steps, half on questions about scenes.",
        make=glimpses.glimpses,
    ),
}


LEARNED = ("world", "layers", "plans", "labels", "trainer")
"""Golden runs of the core (names of `CORE`) that a recipe's weights depend on."""


def with_recipes(names: Sequence[str]) -> list[str]:
    """Names of behaviours, and behind them, where a derived model is among them, what its weights depend on."""
    derived = any(name.removeprefix("model ") in DERIVED for name in names if name.startswith("model "))
    return list(dict.fromkeys([*names, *(f"core {core}" for core in LEARNED if derived)]))


def make(lab: Lab, name: str) -> tuple[Any, Any]:
    """The derived model, loaded from the lab's cache where it has been made before."""
    from tessera.models import reference

    recipe = DERIVED[name]
    known = [lab.behaviour(f"core {core}") for core in LEARNED]
    folder = lab.folder("derived", name, recipe.version, lab.weights(recipe.source), known)
    with locked(folder.with_suffix(".lock")):
        if not (folder / "config.json").is_file():
            import torch

            model, processor = recipe.make(lab)
            reference.save(model, processor, folder, dtype=torch.float32)
    return reference.load(folder)
