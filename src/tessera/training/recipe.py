"""The configuration of a complete experiment; the functions that return one are found by `tessera.recipes.recipe`."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from tessera.config import config
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
