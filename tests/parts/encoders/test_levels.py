"""The layers that encoders show: as many as announced, alike, and the last is what a forward gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tessera import registry
from tessera.config import build

TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 24,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
ENCODERS: list[tuple[str, dict[str, Any], int]] = [
    ("conv_vit", {"image_size": 32, "width": 24, "heads": 2, "depth": 3}, 3),
    ("transformers_vision", {"tower": TOWER}, 2),
    ("transformers_vision", {"tower": TOWER, "layer": -1}, 3),
    ("transformers_vision", {"tower": TOWER, "layer": 0}, 1),
]


@pytest.mark.parametrize(("kind", "options", "count"), ENCODERS)
def test_levels(kind: str, options: dict[str, Any], count: int) -> None:
    target = registry.get("encoders", kind).target
    encoder = target(build(target.Config, options)).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        levels = encoder.levels(pixels)
        assert len(levels) == encoder.level_count == count
        assert torch.equal(levels[-1], encoder(pixels))
    assert {level.shape for level in levels} == {(2, 16, 24)}
    assert all(not torch.equal(a, b) for i, a in enumerate(levels) for b in levels[:i])
