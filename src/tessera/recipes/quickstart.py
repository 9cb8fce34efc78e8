"""The main job of a newcomer: from the shipped experts to a vision-language model in minutes."""

from __future__ import annotations

from tessera.evaluation.items import EvaluationConfig
from tessera.recipes import nano
from tessera.recipes.recipe import Recipe
from tessera.training.options import Questions
from tessera.training.plan import OptimConfig, Schedule, Stage, TrainConfig
from tessera.world import WorldConfig

TYPES = (
    "existence", "count", "total", "relation", "position", "distance", "size", "number", "attribute", "category", "odd",
    "reading", "chart", "box", "at", "multihop",
)  # fmt: skip
"""All that are about one image: pairs and clips are left to longer recipes."""


def quickstart() -> Recipe:
    """The shipped experts stay as they are; projector and a language model of four layers are trained from nothing, with nano's
    first lessons in short."""
    lessons = {name: lesson for name, lesson in nano.nano().lessons.items() if name in ("places", "few")}
    return Recipe(
        name="quickstart",
        about="Shipped experts, new projector and language model: what a few minutes of training on a CPU give.",
        model=nano.model(layers=4),
        start=dict(nano.EXPERTS),
        lessons=lessons,
        worlds=[WorldConfig(kinds={"scene": 0.76, "text": 0.14, "chart": 0.10})],
        questions=Questions(several=(0.0, 0.0), captions=(0.1, 0.0, 0.0), lists=0.4, naming=0.3, weights=dict(nano.WEIGHTS)),
        training=TrainConfig(
            stages=[
                Stage(name="places", steps=250, train=dict(nano.TRAINED), schedule=Schedule(kind="constant", warmup=50)),
                Stage(name="few", steps=250, train=dict(nano.TRAINED), schedule=Schedule(kind="constant", warmup=20)),
                Stage(name="many", steps=270, train=dict(nano.TRAINED), schedule=Schedule(kind="cosine", warmup=20, final=0.02)),
            ],
            optim=OptimConfig(lr=3e-3, muon_lr=0.02),
            batch_size=24,
            save_every=200,
        ),
        evaluation=EvaluationConfig(world=WorldConfig(split="test"), n=1600, types=TYPES),
    )
