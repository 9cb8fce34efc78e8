"""VideoLLaMA3: images at their own resolution, all in one sequence in the order of squares, each square reduced to one token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tessera.hosts.architecture import RasterFamily, family, one_raster
from tessera.nn.layout import Layout


@family("video_llama_3", title="VideoLLaMA3")
class VideoLlama3(RasterFamily):
    """The side of the squares is told per image."""

    def grids(self, model: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        return [(int(h), int(w)) for t, h, w in inputs["image_grid_thw"] for _ in range(int(t))]

    def token_scores(self, model: Any, raw: Sequence[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        tower: Any = self.tower(self.base(model))
        flat = self.flat_scores(model, raw).float()
        return tower.pixel_unshuffle(flat[:, None], inputs["image_grid_thw"], inputs["image_merge_sizes"]).flatten()

    def layouts(self, model: Any, inputs: Mapping[str, Any]) -> list[Layout]:
        frames = torch.as_tensor(inputs["image_grid_thw"])[:, 0].tolist()
        sides = [int(k) for k, count in zip(inputs["image_merge_sizes"], frames, strict=True) for _ in range(count)]
        return [one_raster(h // k, w // k) for (h, w), k in zip(self.grids(model, inputs), sides, strict=True)]
