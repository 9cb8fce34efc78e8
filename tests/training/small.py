"""A composed model of the built-in world in miniature, for objectives and tunings."""

from __future__ import annotations

from typing import Any

import torch

from tessera.recipes.recipe import Recipe, recipe
from tessera.training.plan import OptimConfig, Stage
from tessera.training.run import build

ENCODER = {"kind": "conv_vit", "image_size": 64, "patch_size": 8, "width": 16, "depth": 2, "heads": 2}
PLAN = {"*": 1.0, "encoders.*": 0.0}


def small(name: str = "nano", steps: int = 3, train: dict[str, float] | None = None, **changes: Any) -> Recipe:
    """The recipe with a model of a few thousand parameters, one stage, and a few steps on four samples."""
    found = recipe(name)
    found.start, found.lessons, found.scenes = {}, {}, 0
    for world in found.worlds:
        world.width = world.height = 64
    if found.task == "questions":
        found.model["parts"]["encoders"] = [dict(ENCODER)]
        found.model["parts"]["experts"] = {"kind": "single"}
        found.model["text_config"] |= {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
        found.model["text_config"] |= {"num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8}
    else:
        found.model["encoder"] = dict(ENCODER)
    t = found.training
    t.stages = [Stage(name="only", steps=steps, train=dict(train or PLAN))]
    t.optim = OptimConfig(kind="adamw", lr=1e-2)
    t.batch_size, t.progress, t.precision, t.compile = 4, False, "fp32", "off"
    for key, value in changes.items():
        setattr(found, key, value)
    return found


def made(found: Recipe) -> tuple[Any, Any]:
    """The recipe's model, always the same one, and its processor."""
    torch.manual_seed(7)
    return build(found)
