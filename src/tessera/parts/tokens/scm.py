"""Mini-Monkey's scale compression (SCM): the tokens of the detail layer are halved by what the other tokens look at.

Source: Huang et al., "Mini-Monkey: Multi-Scale Adaptive Cropping for Multimodal Large Language Models", 2024,
arXiv:2408.02034. The first two decoder layers read everything; the attention of the second one from all later tokens
(adaptive layer, thumbnail, text) to the tokens of the detail layer is averaged over queries and heads, and the best half of
them stays, in order. The crops are the part `mini_monkey` of socket `pixels`.

Deviations: the released code runs two layers, throws the result away and begins again with the shorter input; here the tokens
leave between the second and the third layer, so nothing is run twice, and those that stay keep their positions
(`positions="reindex"` counts them anew, as the released code does). It also loses the first token behind the detail layer to
an index that is one too large; that token stays here.

Shapes: B rows, K tokens at a layer; attention [B, K, K] of layer - 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tessera.config import config
from tessera.errors import UserError
from tessera.hosts.part import LayerView
from tessera.hosts.token_reduction import OneDrop
from tessera.hosts.values import Tap
from tessera.nn.raster import on_prompt, raster
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.hosts.contract import Host


@part("scm", socket="tokens", catalog=298)
class ScaleCompression(OneDrop):
    """Drops part of the detail layer's tokens in front of one decoder layer."""

    @config
    class Config(OneDrop.Config):
        """keep: share of the detail tokens; layer in front of which the rest leaves; detail how many of a row's first images
        are its detail layer, one number for all rows or one per row, () for hosts that tile images themselves: all tiles."""

        keep: float = 0.5
        layer: int = 2
        detail: tuple[int, ...] = ()

        def validate_values(self) -> None:
            if self.layer < 1:
                raise ValueError(f"layer must be at least 1: its scores come from the layer in front of it; it is {self.layer}.")
            if any(count < 0 for count in self.detail):
                raise ValueError(f"detail counts images, not {self.detail}.")

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """See `HostPart`."""
        return {"keep": 1.0, "detail": (1,)}

    @classmethod
    def example(cls, layers: int) -> dict[str, Any]:
        """See `HostPart`."""
        return {"keep": 0.5, "layer": min(2, layers - 1), "detail": (1,)}

    def shares(self, layers: int) -> Mapping[int, float]:
        """The one layer, whatever is kept."""
        return {self.config.layer: self.config.keep}

    def language_taps(self, host: Host) -> Mapping[int, Tap]:
        """See `HostPart`."""
        return {self.config.layer - 1: "full"}

    def keep(self, view: LayerView, ratio: float) -> Tensor:
        """The best of the detail layer, and all others."""
        detail = self.detail(view).gather(1, view.index) & view.visual
        count = (detail.sum(1) * ratio).long()
        score = scores(view.attention(view.layer - 1), detail, view.real)
        score = score.masked_fill(~detail, torch.inf)  # the other images stay whole
        return view.keep_top(score, (view.visual & ~detail).sum(1) + count)

    def detail(self, view: LayerView) -> Tensor:
        """[B, S] bool: the prompt's tokens that belong to the detail layer. Raises `UserError` if none can be told."""
        sequence = view.sequence
        rows = sequence.visual.shape[0]
        if self.config.detail:
            counts = self.config.detail * (rows if len(self.config.detail) == 1 else 1)
            if rows % len(counts):
                raise UserError(f"scm: detail names {len(counts)} rows, but the prompt has {rows}.")
            limit = torch.tensor(counts, device=sequence.visual.device).repeat_interleave(rows // len(counts))
            return sequence.visual & (sequence.image_of < limit[:, None])
        places = raster(view.layouts(), sequence.visual.device)
        tiles = torch.tensor([*(not block.whole for _, block in places.blocks), False], device=places.block.device)
        found = on_prompt(tiles[places.block], sequence.visual, False)
        if not bool(found.any()):
            raise UserError(
                "scm finds no tiles in this prompt: say with detail=(n,) how many of the first images are the detail layer."
            )
        return found

    @classmethod
    def budget(cls, share: float, layers: int) -> dict[str, Any]:
        """The first image is taken for the detail layer; the first two layers read all of it."""
        return {"keep": max(0.0, min(1.0, (share * layers - 2) / (layers - 2))), "detail": (1,)}


def scores(attention: Tensor, detail: Tensor, real: Tensor) -> Tensor:
    """Attention [B, K, K], detail, real [B, K] bool -> [B, K]: what each token gets from the tokens behind the detail layer,
    on average.

    The detail layer ends with its last token; only real tokens count.
    """
    places = torch.arange(detail.shape[1], device=detail.device)
    last = torch.where(detail, places, -1).amax(1, keepdim=True)
    later = ((places > last) & real).to(attention.dtype)
    return torch.einsum("bq,bqk->bk", later, attention) / later.sum(1, keepdim=True).clamp(min=1)
