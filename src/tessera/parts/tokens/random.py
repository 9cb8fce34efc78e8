"""Random dropping: the control that every ranking of visual tokens has to beat.

No paper. A share of each image's tokens stays, chosen by a hash of (seed, place among the row's visual tokens): independent
of the image, the same in every run and on every machine, and for a row whatever rows stand beside it. Later drops
choose among the tokens that earlier ones left.

Deviations: none. Newline tokens stay and are not counted, as in the parts that this one is compared with.

Shapes: B rows, S tokens of a prompt, K of them left, V visual tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from tessera.config import config
from tessera.hosts.part import HostPart, LayerView
from tessera.hosts.values import Positions, Selection
from tessera.nn.raster import on_prompt, raster
from tessera.nn.reduction import check_layers, check_shares, hashed, keep_share, stages
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.hosts.contract import Host


@part("random", socket="tokens")
class Random(HostPart):
    """Drops visual tokens by chance."""

    claims = ("visual tokens",)
    reads_question = False

    @config
    class Config:
        """keep: share of each image's original tokens that goes on from each drop, falling.
        layers: the decoder layers in front of which tokens are dropped, rising; 0 is the projector's output.
        seed: of the choice.
        positions: of the tokens that stay."""

        keep: tuple[float, ...] = (0.25,)
        layers: tuple[int, ...] = (0,)
        seed: int = 0
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
        return stages("random", self.config.keep, self.config.layers, layers)

    def boundaries(self, host: Host) -> Collection[int]:
        """The layers in front of which something is dropped."""
        return self.stages(host.layer_count).keys()

    def select(self, view: LayerView) -> Selection | None:
        """Drops at the beginning of a stage."""
        kept = self.stages(view.host.layer_count).get(view.layer)
        if kept is None or not bool(view.visual.any()):
            return None
        image = view.sequence.image_of
        if "raster" in view.host.architecture.capabilities:
            ends = raster(view.layouts(), image.device).newline
            image = image.masked_fill(on_prompt(ends, view.sequence.visual, False), -1)
        score = hashed(view.sequence.visual.cumsum(1), self.config.seed)
        return Selection(keep=keep_share(score, image, view.index, view.visual, kept))

    @classmethod
    def budget(cls, share: float, layers: int) -> dict[str, Any]:
        """Dropping happens in front of the first layer."""
        return {"keep": (share,)}
