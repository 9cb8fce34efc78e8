"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images at their own resolution, all in one sequence, 2 x 2 patches per token.

The processor orders patches by squares, so four neighbours in the sequence become one token; Qwen2.5-VL's tower works on
windows, whose order is undone behind its last block. Qwen3-VL adds features of earlier blocks between decoder layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tessera.hosts.architecture import RasterFamily, family


@family("qwen2_vl", title="Qwen2-VL")
class Qwen2VL(RasterFamily):
    """See the module."""

    def projector(self, base: Any) -> nn.Module | None:
        return base.visual.merger

    def stride(self, model: Any) -> int:
        return int(model.config.vision_config.spatial_merge_size)

    def grids(self, model: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        return [(int(h), int(w)) for t, h, w in inputs["image_grid_thw"] for _ in range(int(t))]

    def token_scores(self, model: Any, raw: Sequence[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        squares = torch.cat([scores.reshape(-1) for scores in raw]).view(-1, self.stride(model) ** 2)
        return squares.float().mean(1)


@family("qwen3_vl", title="Qwen3-VL")
class Qwen3VL(Qwen2VL):
    """See the module."""


@family("qwen2_5_vl", title="Qwen2.5-VL")
class Qwen25VL(Qwen2VL):
    """See the module."""

    def token_scores(self, model: Any, raw: Sequence[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        scores = super().token_scores(model, raw, inputs)
        tower: Any = self.tower(self.base(model))
        grid = torch.as_tensor(inputs["image_grid_thw"])
        return scores[torch.argsort(_windows(tower, grid).to(scores.device))]


def _windows(tower: Any, grid: Tensor) -> Tensor:
    """Which token stands at each place of the tower's order."""
    own = getattr(tower, "get_window_index", None)  # transformers before 5.20
    if own is not None:
        return torch.as_tensor(own(grid)[0])
    from transformers.vision_utils import get_vision_window_index

    sizes = {"spatial_merge_size": tower.spatial_merge_size, "window_size": tower.window_size, "patch_size": tower.patch_size}
    order, _ = get_vision_window_index(grid, **sizes, kwargs={})
    return order
