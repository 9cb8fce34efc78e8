"""The tower that the reference dual encoder starts from, trained on dense labels before captions."""

from __future__ import annotations

from tessera.recipes import object_expert, reading_expert
from tessera.recipes.recipe import Recipe
from tessera.training.plan import OptimConfig, Stage, TrainConfig


def nano_clip_tower() -> Recipe:
    """The object expert's data for a tower of the reading expert's size; `nano_clip` goes on from `runs/nano_clip_tower`."""
    return Recipe(
        name="nano_clip_tower",
        about="Small vision tower with dense labels, where the reference dual encoder starts.",
        task="objects",
        model={"encoder": dict(reading_expert.ENCODER)},
        worlds=object_expert.object_expert().worlds,
        training=TrainConfig(stages=[Stage(name="dense", steps=1000)], optim=OptimConfig(lr=2e-3), batch_size=32),
    )
