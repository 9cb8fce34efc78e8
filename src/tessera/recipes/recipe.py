"""Recipes by name. A recipe is a function that returns a complete, typed experiment.

    def quickstart() -> Recipe: ...

`recipe("quickstart")` finds it by exact name; `recipe("my/file.py:function")` takes one from a file of the user's.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from pathlib import Path

from tessera.errors import UserError, unknown
from tessera.training.recipe import Recipe, StageData

__all__ = ["Recipe", "StageData", "names", "recipe"]


def names() -> list[str]:
    """All built-in recipes."""
    package = importlib.import_module("tessera.recipes")
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name != "recipe")


def recipe(name: str) -> Recipe:
    """The recipe of a built-in name, or of `file.py:function`. Raises `UserError` with the nearest names."""
    path, colon, function = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_file(Path(path), function)
    if name not in names():
        raise unknown("recipe", name, names())
    made = getattr(importlib.import_module(f"tessera.recipes.{name}"), name)()
    assert isinstance(made, Recipe)
    return made


def _from_file(path: Path, function: str) -> Recipe:
    if not path.is_file():
        raise UserError(f"there is no recipe file {path}.")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    make = getattr(module, function, None)
    if not callable(make):
        offered = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == path.stem]
        raise unknown(f"function in {path}:", function, offered)
    made = make()
    if not isinstance(made, Recipe):
        raise UserError(
            f"{path}:{function} returned {type(made).__name__}; a recipe function returns a tessera.recipes.recipe.Recipe."
        )
    return made
