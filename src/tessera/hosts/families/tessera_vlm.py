"""Tessera's composed model: patches of its first encoder, whose raster the others are resampled to; squares may become tokens.

Where a part keeps no full raster, or shows encoders several views of an image, there is no map, and the capability is not given.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tessera.errors import UserError
from tessera.hosts.architecture import Architecture, RasterFamily, family


@family("tessera_vlm", title="Tessera")
class TesseraVlm(RasterFamily):
    """See the module."""

    def architecture(self, model: Any) -> Architecture:
        found = super().architecture(model)
        if _stride(self.base(model)) is None:
            return dataclasses.replace(found, capabilities=found.capabilities - {"token map", "raster"})
        return found

    def tower(self, base: Any) -> nn.Module | None:
        if not len(base.encoders):  # the coupling reads pixels
            return None
        encoder = base.encoders[0]
        return getattr(encoder, "tower", encoder)

    def projector(self, base: Any) -> nn.Module | None:
        return base.connector

    def feature_block(self, model: Any) -> int:
        layer = int(getattr(self.base(model).encoders[0], "layer", -1))
        return layer if layer < 0 else max(layer - 1, 0)

    def stride(self, model: Any) -> int:
        found = _stride(self.base(model))
        if found is None:
            raise UserError("the model's parts keep no full raster of one view, so patches cannot be mapped to visual tokens.")
        return found

    def grids(self, model: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        base: Any = self.base(model)
        return [tuple(base.experts.grid)] * len(inputs["pixel_values"])

    def flat_scores(self, model: Any, raw: Sequence[Tensor]) -> Tensor:
        base: Any = self.base(model)
        rows, columns = base.encoders[0].grid
        return torch.cat([scores[:, scores.shape[1] - rows * columns :].reshape(-1) for scores in raw])


def _stride(base: Any) -> int | None:
    """Patches per side of a token, None where tokens are no full raster of squares, or no tokens of the text."""
    if base.experts is None or base.pixels is not None or base.tokens_per_image != base.features_per_image:
        return None
    before, after = base.experts.grid, base.tokens.grid
    if after is None or base.features_per_image != after[0] * after[1]:
        return None
    if before != base.encoders[0].grid or before[0] % after[0] or before[1] % after[1]:
        return None
    step = before[0] // after[0]
    return step if before[1] // after[1] == step else None
