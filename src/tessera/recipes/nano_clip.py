"""The reference dual encoder: images and captions in one space."""

from __future__ import annotations

from tessera.recipes import reading_expert
from tessera.recipes.recipe import Recipe
from tessera.training.plan import OptimConfig, Stage, TrainConfig
from tessera.world import WorldConfig


def nano_clip() -> Recipe:
    """Contrastive, with captions that name every thing; batches are large because every caption is a negative for the others.

    The tower comes from `nano_clip_tower`, trained first: a small tower learns what is where far more slowly from captions alone.
    """
    return Recipe(
        name="nano_clip",
        about="Reference dual encoder of the built-in world.",
        task="captions",
        model={
            "encoder": {**reading_expert.ENCODER},
            "projection_dim": 128,
            "pool_heads": 4,
            "text_width": 128,
            "text_depth": 3,
            "text_heads": 2,
        },
        start={"encoder": "runs/nano_clip_tower/model"},
        worlds=[WorldConfig(kinds={"scene": 1.0}, things=(1, 5))],
        training=TrainConfig(
            stages=[Stage(name="contrast", steps=1200)], optim=OptimConfig(lr=2e-3, muon_lr=0.02), batch_size=64
        ),
    )
