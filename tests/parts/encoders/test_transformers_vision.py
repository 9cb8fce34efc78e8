"""Wrapped towers give what the tower itself gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tessera.config import build
from tessera.errors import UserError
from tessera.parts.encoders.transformers_vision import TransformersVision

SIZES = {
    "hidden_size": 24,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}


def wrapped(kind: str, **changes: Any) -> TransformersVision:
    values = {"tower": {"model_type": kind, **SIZES}, **changes}
    return TransformersVision(build(TransformersVision.Config, values)).eval()


@pytest.mark.parametrize(("kind", "dropped"), [("clip_vision_model", 1), ("siglip_vision_model", 0), ("dinov2", 1), ("vit", 1)])
@pytest.mark.parametrize("layer", [-1, -2])
def test_the_layer_asked_for_without_its_leading_tokens(kind: str, dropped: int, layer: int) -> None:
    model = wrapped(kind, layer=layer)
    pixels = torch.randn(2, 3, 32, 32)
    expected = model.tower(pixel_values=pixels, output_hidden_states=True).hidden_states[layer][:, dropped:]
    out = model(pixels)
    assert out.shape == (2, 16, 24)
    assert torch.equal(out, expected)


def test_mistakes_are_refused() -> None:
    with pytest.raises(UserError, match="'clip_visual_model'. Did you mean"):
        wrapped("clip_visual_model")
    with pytest.raises(UserError, match="layer is 5, but vit has 2 layers"):
        wrapped("vit", layer=5)
    with pytest.raises(UserError, match="with a model_type"):
        TransformersVision(TransformersVision.Config(tower={}))
    with pytest.raises(UserError, match="do not fill a grid of 16"):
        wrapped("vit", drop=0)(torch.zeros(1, 3, 32, 32))
    with pytest.raises(UserError, match="32 x 32 pixels, not 16 x 16"):
        wrapped("vit")(torch.zeros(1, 3, 16, 16))
