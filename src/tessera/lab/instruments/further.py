"""A reference model learns on by an objective, with a tuning or from records, and how often it then sees what is not there.

model, processor = learned(lab, objective={"kind": "povid"}, seed=0)
model, processor = taught(lab, records, seed=0, steps=40)
share = wrong_yes(lab.evaluate(model, processor, types=("existence",)))
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tessera.config import build
from tessera.evaluation.items import EvaluationConfig, draw
from tessera.evaluation.result import Result, words
from tessera.world import WorldConfig

if TYPE_CHECKING:
    from tessera.data.records import Record
    from tessera.lab.lab import Lab, Model

RECIPES = {"nano": "nano", "nano-clip": "nano_clip"}
"""Reference model -> recipe whose configuration it has."""
SCENES = {"kinds": {"scene": 1.0}, "things": (1, 5)}


def learned(
    lab: Lab,
    *,
    seed: int,
    start: str = "nano",
    objective: Mapping[str, Any] | None = None,
    tuning: Mapping[str, Any] | None = None,
    world: Mapping[str, Any] | None = None,
    steps: int = 40,
    batch: int = 8,
    rate: float = 2e-4,
    train: Mapping[str, float] | None = None,
) -> Model:
    """The reference model, or a tuned `nano` in the folder `start`, after `steps` steps of AdamW on training scenes, from a part
    of the world of the seed's own; encoders of a composed model stay as they are. A tuning lies in the model's folder
    (`adapters`)."""
    from tessera.recipes.recipe import recipe
    from tessera.training.options import Questions
    from tessera.training.plan import OptimConfig, Schedule, Stage, TrainConfig

    base = recipe(RECIPES.get(start, "nano"))
    plan = dict(train or {"*": 1.0} | ({"encoders.*": 0.0} if base.task == "questions" else {}))
    optim = OptimConfig(kind="adamw", lr=rate, weight_decay=0.0)
    stages = [Stage(name="further", steps=steps, train=plan, schedule=Schedule(kind="cosine", warmup=4, final=0.1))]
    training = TrainConfig(stages=stages, optim=optim, batch_size=batch, compile="off", save_every=0)
    made = replace(
        base,
        name="further",
        start={"*": start},
        lessons={},
        worlds=[build(WorldConfig, {**SCENES, "split": "train", "seed": 100 + seed, **(world or {})})],
        questions=Questions(captions=(0.0, 0.0, 0.0), several=(0.0, 0.0)),
        objective=None if objective is None else dict(objective),
        tuning=None if tuning is None else dict(tuning),
        training=training,
    )
    return lab.train(made, seed=seed)


def taught(lab: Lab, records: Sequence[Record], *, seed: int, steps: int) -> Model:
    """The reference vision-language model after `steps` steps of 16 conversations, with the optimiser that it was made with, at
    less than its rates; encoders stay as they are."""
    from tessera.data.engine import write_once
    from tessera.recipes.recipe import recipe
    from tessera.training.plan import OptimConfig, Schedule, Stage, TrainConfig

    stage = Stage(name="further", steps=steps, train={"*": 1.0, "encoders.*": 0.0}, schedule=Schedule(warmup=5))
    optim = OptimConfig(lr=1e-3, muon_lr=0.01)
    made = replace(
        recipe(RECIPES["nano"]),
        name="further",
        start={"*": "nano"},
        lessons={},
        data=str(write_once(records, lab.cache / "data")),
        training=TrainConfig(stages=[stage], optim=optim, batch_size=16, compile="off"),
    )
    return lab.train(made, seed=seed)


def adapters(model: Any) -> str:
    """The folder of the tuning that a model of `learned` was trained with."""
    from pathlib import Path

    from tessera.training.tuning import FOLDER

    return str(Path(model.name_or_path) / FOLDER)


def wrong_yes(result: Result) -> float:
    """Of the questions whether something is there that is not, the share that was answered with yes."""
    asked = draw(build(EvaluationConfig, result.config))
    questions = [q for item in asked for q in item.questions if q.type == "existence"]
    right = [bool(o) for outcomes in words(result.types["existence"].outcomes) for o in outcomes]
    absent = [ok for q, ok in zip(questions, right, strict=True) if q.answer == "no"]
    return 1 - sum(absent) / len(absent)


def means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each named number over runs."""
    return {name: sum(v[name] for v in values) / len(values) for name in values[0]}
