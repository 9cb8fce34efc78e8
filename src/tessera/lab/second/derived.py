"""Reference models that are derived from the shipped ones by a committed recipe, in minutes, and kept in the cache, not shipped.

Each has a weakness that some papers cure. A recipe is a row of `DERIVED`: a function (lab) -> (model, processor), the model that
it starts from, and a version that goes up when the recipe changes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.lab.second.lab import Lab


@dataclass(frozen=True, slots=True, kw_only=True)
class Derived:
    """about: what the model is and how it is made; trains: whether `make` takes minutes, so that its result is kept on disk."""

    source: str
    version: int
    about: str
    make: Callable[[Lab], tuple[Any, Any]]


DERIVED: dict[str, Derived] = {}


def make(lab: Lab, name: str) -> tuple[Any, Any]:
    """The derived model, loaded from the lab's cache where it has been made before."""
    from tessera.lab.second.lab import locked
    from tessera.models import reference

    recipe = DERIVED[name]
    folder = lab.folder("derived", name, recipe.version, lab.weights(recipe.source))
    with locked(folder.with_suffix(".lock")):
        if not (folder / "config.json").is_file():
            import torch

            model, processor = recipe.make(lab)
            reference.save(model, processor, folder, dtype=torch.float32)
    return reference.load(folder)
