"""FastVLM: the last feature map of FastViT, a convolutional tower whose attention cannot be captured; every place is a token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tessera.hosts.architecture import Family, family, one_raster
from tessera.nn.layout import Layout


@family("fast_vlm", title="FastVLM")
class FastVlm(Family):
    """See the module."""

    knows_layouts = True

    def tower_blocks(self, tower: nn.Module) -> nn.ModuleList | None:
        return None

    def layouts(self, model: Any, inputs: Mapping[str, Any]) -> list[Layout]:
        pixels = inputs["pixel_values"]
        step = _reduction(self.tower(self.base(model)))
        return [one_raster(-(-pixels.shape[-2] // step), -(-pixels.shape[-1] // step))] * len(pixels)


def _reduction(tower: Any) -> int:
    """Pixels per place of the last feature map, along each side."""
    return int(tower.timm_model.feature_info[-1]["reduction"])
