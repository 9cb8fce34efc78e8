"""The reading expert, trained to tell which letter or digit stands at each patch."""

from __future__ import annotations

from tessera.recipes.recipe import Recipe
from tessera.training.plan import OptimConfig, Stage, TrainConfig
from tessera.world import WorldConfig

ENCODER = {"kind": "conv_vit", "image_size": 112, "patch_size": 8, "width": 128, "depth": 5, "heads": 2}


def reading_expert() -> Recipe:
    """Signs and panels only; patches between characters are not asked about."""
    return Recipe(
        name="reading_expert",
        about="Vision tower that knows which letter or digit stands at every patch.",
        task="characters",
        model={"encoder": dict(ENCODER)},
        worlds=[
            WorldConfig(kinds={"text": 1.0}),
            WorldConfig(kinds={"text": 1.0}),
            WorldConfig(kinds={"text": 1.0, "chart": 2.0}),
        ],
        training=TrainConfig(stages=[Stage(name="dense", steps=1800)], optim=OptimConfig(lr=2e-3), batch_size=32),
    )
