"""Uniform dropping: the control that keeps tokens spread evenly over the image.

No paper. The tokens of each image stay in the order of a Bayer matrix over their raster: at a quarter every second row and
column, at any other share as evenly as the lattice allows, and later drops keep a part of what earlier ones kept. A host
that tells no raster has its tokens spread evenly in their order.

Deviations: none. Newline tokens stay and are not counted, as in the parts that this one is compared with. Several rasters of
one image (a thumbnail and the canvas of its tiles) share the image's budget place by place, the coarsest lattice of each first.

Shapes: B rows, S tokens of a prompt, K of them left, V visual tokens of the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tessera.hosts.token_reduction import PlaceDrop
from tessera.nn.raster import Raster, on_prompt
from tessera.nn.reduction import dispersed
from tessera.registry import part


def order(row: Tensor, column: Tensor) -> Tensor:
    """Score of the places of rasters: the higher, the earlier a place belongs to an evenly spread set. int64, below 2^24."""
    return (1 << 24) - 1 - dispersed(row.clamp(min=0), column.clamp(min=0))


@part("uniform", socket="tokens")
class Uniform(PlaceDrop):
    """Drops visual tokens evenly over the image."""

    def order(self, visual: Tensor, places: Raster | None) -> Tensor:
        """By the lattice of each raster, or along the tokens' order."""
        if places is not None:
            return on_prompt(order(places.row, places.column), visual, 0)
        place = visual.cumsum(1) - 1
        return order(torch.zeros_like(place), place)
