"""The quickstart: shipped experts and a language model are trained to a vision-language model, in minutes on a CPU."""

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
WEIGHTS = {
    "odd": 2.0, "number": 2.0, "category": 2.0, "count": 2.0, "attribute": 2.0, "reading": 3.0, "distance": 2.0, "chart": 2.0,
    "position": 1.5, "size": 1.5,
}  # fmt: skip
"""Types that few scenes have are asked more often where they can be."""


def quickstart() -> Recipe:
    """LLaVA's two stages in small (Liu et al., 2023, arXiv:2304.08485): a new projector learns to show the language model what
    two vision experts see, then both train on. Every scene is read by the frozen experts once and asked about again and again.

    The experts and the language model are shipped ones; the language model is that of `nano`, which has answered questions about
    this world behind another projector, with four times as many visual tokens. What the new one shows, it has to learn anew.
    """
    model = nano.shipped()
    model["parts"]["tokens"] = {"kind": "pixel_shuffle", "factor": 2}
    return Recipe(
        name="quickstart",
        about="Shipped experts, the language model of nano and a new projector: what minutes on a CPU give.",
        model=model,
        start={**nano.EXPERTS, "language_model": "nano"},
        scenes=1600,
        worlds=[WorldConfig(kinds={"scene": 0.68, "text": 0.18, "chart": 0.14})],
        questions=Questions(
            text_tokens=144, several=(0.0, 0.0), captions=(0.0, 0.0, 0.0), lists=0.2, types=TYPES, weights=dict(WEIGHTS)
        ),
        training=TrainConfig(
            stages=[
                Stage(name="projector", steps=90, train={"connector": 1.0}, schedule=Schedule(kind="constant", warmup=10)),
                Stage(
                    name="both",
                    steps=150,
                    train={"*": 0.5, "encoders.*": 0.0, "connector": 1.0},
                    schedule=Schedule(warmup=10, final=0.02),
                ),
            ],
            optim=OptimConfig(lr=2e-3, muon_lr=0.014),
            batch_size=16,
            compile="off",
            save_every=100,
        ),
        evaluation=EvaluationConfig(world=WorldConfig(split="test"), n=1600, types=TYPES),
    )
