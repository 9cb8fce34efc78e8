"""PyramidDrop drops visual tokens between the language model's layers, more of them the deeper.

Source: Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual Redundancy Reduction", 2024,
arXiv:2410.17247. The decoder is cut into stages. In front of each stage but the first, the visual tokens are ranked by
the attention that the last instruction token pays them by the queries and keys of the layer to come, averaged over
heads, and only a share of the original tokens goes on, in its order.

Deviations: `rank="previous"` ranks by what the layer before really attended, which saves the extra queries and keys. Positions
are kept unless `positions="reindex"` (the authors' code counts them anew). A row's images are ranked together, as one set.
The query of a training sequence is the host's last instruction token, not the mean over the tokens in front of each answer.

Shapes: B rows, K tokens per row.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from tessera.config import config
from tessera.errors import UserError
from tessera.hosts.part import LayerView
from tessera.hosts.token_reduction import TokenReduction
from tessera.hosts.values import Tap
from tessera.nn.reduction import check_layers, check_shares, share, stages
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.hosts.contract import Host


def evenly(layers: int, stages: int) -> tuple[int, ...]:
    """The layers in front of which `stages` drops cut `layers` layers into equal parts: 32, 3 -> (8, 16, 24)."""
    return tuple(layers * (i + 1) // (stages + 1) for i in range(stages))


@part("pyramiddrop", socket="tokens", catalog=268)
class PyramidDrop(TokenReduction):
    """Keeps fewer visual tokens from stage to stage."""

    @config
    class Config(TokenReduction.Config):
        """keep: share of the original visual tokens that goes on from each drop, falling.
        layers: the decoder layers in front of which tokens are dropped, rising; None: evenly spaced.
        rank: by the queries and keys of the layer to come, or by the attention of the layer before."""

        keep: tuple[float, ...] = (0.5, 0.25, 0.125)
        layers: tuple[int, ...] | None = None
        rank: Literal["next", "previous"] = "next"

        def validate_keep(self) -> None:
            check_shares(self.keep)

        def validate_layers(self) -> None:
            if self.layers is not None:
                check_layers(self.layers)

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Every token goes on."""
        return {"keep": (1.0,)}

    @classmethod
    def example(cls, layers: int) -> dict[str, Any]:
        """Half of the tokens from the middle on."""
        return {"keep": (0.5,), "layers": (layers // 2,)}

    def shares(self, layers: int) -> Mapping[int, float]:
        """Layer -> share, without drops of nothing."""
        keep, places = self.config.keep, self.config.layers
        if places is None:
            if len(keep) >= layers:
                raise UserError(f"pyramiddrop: {len(keep)} drops do not fit into {layers} layers.")
            places = evenly(layers, len(keep))
        if self.config.rank == "previous" and places[0] == 0:
            raise UserError("pyramiddrop: in front of layer 0 no layer has attended yet; use rank='next', or layers from 1 on.")
        return stages("pyramiddrop", keep, places, layers)

    def language_taps(self, host: Host) -> Mapping[int, Tap]:
        """The layers before the drops, when they rank."""
        if self.config.rank == "next":
            return {}
        return {layer - 1: "last" for layer in self.shares(host.layer_count)}

    def score(self, view: LayerView) -> Tensor:
        """Attention of the last instruction token."""
        return view.probe() if self.config.rank == "next" else view.attention(view.layer - 1)

    def keep(self, view: LayerView, ratio: float) -> Tensor:
        """Of a row's images together."""
        score = self.score(view)
        return view.keep_top(score, share(view.sequence.visual.sum(1), ratio))

    @classmethod
    def budget(cls, share: float, layers: int) -> dict[str, Any]:
        """Three drops, each to the same share of what is left, so that the mean over layers is `share`; the smallest that
        stages of equal length can reach is a quarter."""
        edges = [0, *evenly(layers, 3), layers]
        lengths = [b - a for a, b in pairwise(edges)]

        def average(ratio: float) -> float:
            return sum(length * ratio**n for n, length in enumerate(lengths)) / layers

        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if average(middle) > share else (middle, high)
        return {"keep": (low, low**2, low**3)}
