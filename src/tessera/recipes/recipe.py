"""What a recipe is: a function that returns a complete, typed experiment.

    def quickstart() -> Recipe: ...

`recipe("quickstart")` finds it by exact name; `recipe("my/file.py:function")` takes one from a file of the user's.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from tessera.config import config
from tessera.errors import UserError, unknown
from tessera.evaluation.items import EvaluationConfig
from tessera.training.options import Questions
from tessera.training.plan import TrainConfig
from tessera.world import WorldConfig


@config
class StageData:
    """What one training stage learns from instead of the recipe's own `worlds` and `questions`; None: those."""

    worlds: list[WorldConfig] | None = None
    questions: Questions | None = None
    scenes: int | None = None


@config
class Recipe:
    """A complete experiment.

    task: "questions" (composed model, packed questions), "objects" or "characters" (an expert, dense labels per patch),
    "captions" (dual encoder, contrastive). model: the model's configuration as plain data; start: socket -> reference model or
    folder that its weights come from ("*": the full model). worlds: where samples come from, in turn; lessons: what the training
    stages of these names learn from instead; scenes: as many are drawn and read by the frozen towers before the
    first step, and asked about again and again (task "questions"; 0: every step draws and reads new ones); data: a dataset's path
    in place of the worlds (task "questions"), with its image folder; blind: train and measure without images. objective: what is
    minimised in place of the task's own loss, `{"kind": part of socket objectives, distillation or preference, ...}`, with a
    frozen copy of the starting model where it wants one; tuning: what moves in place of the weights themselves, `{"kind": part of
    socket tuning, ...}`, saved in `model/tuning` (a stage trains it under the name "tuning").
    """

    name: str
    about: str
    task: Literal["questions", "objects", "characters", "captions"] = "questions"
    model: dict[str, Any]
    start: dict[str, str] = field(default_factory=dict)
    worlds: list[WorldConfig] = field(default_factory=lambda: [WorldConfig()])
    lessons: dict[str, StageData] = field(default_factory=dict)
    scenes: int = 0
    data: str | None = None
    images: str | None = None
    blind: bool = False
    objective: dict[str, Any] | None = None
    tuning: dict[str, Any] | None = None
    questions: Questions = field(default_factory=Questions)
    training: TrainConfig = field(default_factory=TrainConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


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
