"""Tiny models with random weights for golden runs. No protocol."""

from __future__ import annotations

from functools import cache
from typing import Any


@cache
def tiny_model() -> tuple[Any, Any]:
    """A composed model of 16 visual tokens, 32-pixel images, two layers of width 32, the world's vocabulary; its processor."""
    import torch

    from tessera.hosts.zoo import fill
    from tessera.lab.contract.models import ENCODER
    from tessera.recipes.recipe import Recipe
    from tessera.training.run import build

    text = {
        "model_type": "llama",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
    }
    parts = {
        "encoders": [dict(ENCODER)],
        "experts": {"kind": "single"},
        "tokens": {"kind": "identity"},
        "connector": {"kind": "linear"},
        "coupling": {"kind": "prefix"},
    }
    state = torch.get_rng_state()
    try:
        model, processor = build(Recipe(name="tiny", about="tiny", model={"parts": parts, "text_config": text}))
        fill(model, 0)
    finally:
        torch.set_rng_state(state)
    return model.eval(), processor
