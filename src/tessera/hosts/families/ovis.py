"""Ovis2: squares of patches become a distribution over a visual vocabulary; its mean embedding is the token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.hosts.architecture import RasterFamily, family, one_raster, split_rasters
from tessera.nn.layout import Layout


@family("ovis2", title="Ovis2")
class Ovis2(RasterFamily):
    """A raster that fills no whole squares is filled up on the right and below: those tokens show fewer patches."""

    def stride(self, model: Any) -> int:
        return int(model.config.vision_config.hidden_stride)

    def token_scores(self, model: Any, raw: Sequence[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        rasters = split_rasters(self.flat_scores(model, raw), self.grids(model, inputs))
        k = self.stride(model)
        return torch.cat([F.avg_pool2d(r[None, None].float(), k, ceil_mode=True).flatten() for r in rasters])

    def layouts(self, model: Any, inputs: Mapping[str, Any]) -> list[Layout]:
        k = self.stride(model)
        return [one_raster(-(-rows // k), -(-columns // k)) for rows, columns in self.grids(model, inputs)]
