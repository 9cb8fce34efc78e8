"""The object expert, trained to tell which everyday object covers each patch, and its attributes."""

from __future__ import annotations

from tessera.recipes.recipe import Recipe
from tessera.training.plan import OptimConfig, Stage, TrainConfig
from tessera.world import WorldConfig
from tessera.world.vocabulary import attribute_values

ENCODER = {"kind": "conv_vit", "image_size": 112, "patch_size": 8, "width": 192, "depth": 6, "heads": 3}


def object_expert() -> Recipe:
    """Dense labels first: a small tower learns from them in minutes what takes hours from captions. Crowded scenes help most.

    Tint and style are told apart besides: an expert of names alone learns to look past them, and nothing behind it could then
    tell a red cup from a blue one.
    """
    scenes = {"scene": 1.0}
    return Recipe(
        name="object_expert",
        about="Vision tower that knows what stands at every patch: 361 base concepts, background, text; its tint and style.",
        task="objects",
        model={"encoder": dict(ENCODER), "attributes": attribute_values()},
        worlds=[
            WorldConfig(kinds=scenes, things=(7, 12)),
            WorldConfig(kinds=scenes, things=(6, 12)),
            WorldConfig(kinds=scenes),
        ],
        training=TrainConfig(stages=[Stage(name="dense", steps=1500)], optim=OptimConfig(lr=2e-3), batch_size=32),
    )
