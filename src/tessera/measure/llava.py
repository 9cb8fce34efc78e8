"""A host to count and time on: shaped like LLaVA (a class token, square patches, a tower much smaller than the language model).

Its weights are random: which tokens a part keeps is meaningless, what that costs is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_IMAGE = 5
"""Token id that stands for a visual token."""


@dataclass(slots=True, kw_only=True)
class Shape:
    """The host. Tower: `patches` x `patches` patches of 14 pixels, heads of 64."""

    layers: int = 12
    width: int = 512
    intermediate: int = 1408
    heads: int = 8
    patches: int = 24
    tower_layers: int = 4
    tower_width: int = 192
    text_tokens: int = 64


def host(shape: Shape, seed: int = 0) -> Any:
    """A LLaVA with random weights."""
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    text = dict(
        model_type="llama",
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        intermediate_size=shape.intermediate,
        vocab_size=1000,
        max_position_embeddings=2048,
    )
    tower = dict(
        model_type="clip_vision_model",
        hidden_size=shape.tower_width,
        intermediate_size=4 * shape.tower_width,
        num_hidden_layers=shape.tower_layers,
        num_attention_heads=max(1, shape.tower_width // 64),
        image_size=14 * shape.patches,
        patch_size=14,
    )
    state = torch.get_rng_state()
    try:
        torch.manual_seed(seed)
        config = LlavaConfig(text_config=text, vision_config=tower, image_token_index=_IMAGE)
        return LlavaForConditionalGeneration(config).eval()
    finally:
        torch.set_rng_state(state)


def inputs(shape: Shape) -> dict[str, Any]:
    """One prompt: a third of the text, one image, the rest of the text."""
    import torch

    random = torch.Generator().manual_seed(0)
    text = torch.randint(10, 1000, (shape.text_tokens,), generator=random)
    before = shape.text_tokens // 3
    ids = torch.cat([text[:before], torch.full((shape.patches**2,), _IMAGE), text[before:]])[None]
    side = 14 * shape.patches
    pixels = torch.randn(1, 3, side, side, generator=random)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
