"""Uniform dropping: the control that keeps tokens spread evenly over the image.

No paper. The tokens of each image stay in the order of a Bayer matrix over their raster: at a quarter every second row and
column, at any other share as evenly as the lattice allows, and later drops keep a part of what earlier ones kept. A host
that tells no raster has its tokens spread evenly in their order.

Deviations: none. Newline tokens stay and are not counted, as in the parts that this one is compared with. Several rasters of
one image (a thumbnail and the canvas of its tiles) share the image's budget place by place, the coarsest lattice of each first.

Shapes: B rows, S tokens of a prompt, K of them left, V visual tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tessera.config import config
from tessera.hosts.part import HostPart, LayerView
from tessera.hosts.values import Positions, Selection
from tessera.nn.raster import on_prompt, raster
from tessera.nn.reduction import check_layers, check_shares, dispersed, keep_share, stages
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.hosts.contract import Host


def order(row: Tensor, column: Tensor) -> Tensor:
    """Score of the places of rasters: the higher, the earlier a place belongs to an evenly spread set. int64, below 2^24."""
    return (1 << 24) - 1 - dispersed(row.clamp(min=0), column.clamp(min=0))


@part("uniform", socket="tokens")
class Uniform(HostPart):
    """Drops visual tokens evenly over the image."""

    claims = ("visual tokens",)
    reads_question = False

    @config
    class Config:
        """keep: share of each image's original tokens that goes on from each drop, falling.
        layers: the decoder layers in front of which tokens are dropped, rising; 0 is the projector's output.
        positions: of the tokens that stay."""

        keep: tuple[float, ...] = (0.25,)
        layers: tuple[int, ...] = (0,)
        positions: Positions = "keep"

        def validate_keep(self) -> None:
            check_shares(self.keep)

        def validate_layers(self) -> None:
            check_layers(self.layers)

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Every token goes on."""
        return {"keep": (1.0,)}

    @classmethod
    def example(cls, layers: int) -> dict[str, Any]:
        """Half of the tokens."""
        return {"keep": (0.5,)}

    @property
    def positions(self) -> Positions:
        """As configured."""
        return self.config.positions

    def stages(self, layers: int) -> dict[int, float]:
        """Layer -> share. Raises `UserError` where the options do not fit `layers` layers."""
        return stages("uniform", self.config.keep, self.config.layers, layers)

    def boundaries(self, host: Host) -> Collection[int]:
        """The layers in front of which something is dropped."""
        return self.stages(host.layer_count).keys()

    def select(self, view: LayerView) -> Selection | None:
        """Drops at the beginning of a stage."""
        kept = self.stages(view.host.layer_count).get(view.layer)
        if kept is None or not bool(view.visual.any()):
            return None
        image = view.sequence.image_of
        visual = view.sequence.visual
        if "raster" in view.host.architecture.capabilities:
            places = raster(view.layouts(), image.device)
            image = image.masked_fill(on_prompt(places.newline, visual, False), -1)
            score = on_prompt(order(places.row, places.column), visual, 0)
        else:
            place = visual.cumsum(1) - 1
            score = order(torch.zeros_like(place), place)
        return Selection(keep=keep_share(score, image, view.index, view.visual, kept))

    @classmethod
    def budget(cls, share: float, layers: int) -> dict[str, Any]:
        """Dropping happens in front of the first layer."""
        return {"keep": (share,)}
