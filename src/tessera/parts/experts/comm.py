"""COMM merges the layers of every vision encoder, shallow ones included, before it joins the encoders.

Source: Jiang et al., "From CLIP to DINO: Visual Encoders Shout in Multi-modal Large Language Models", 2023, arXiv:2310.08825.
Deep layers know what a thing is, shallow ones where exactly it is; a projector that reads the last layer alone loses the
latter. So every layer passes a linear layer and a LayerNorm of its own (LLN), and what an encoder gives is their weighted sum
with learned weights that sum to one (LLN-Layerscale). Encoders that were not trained with language (DINOv2 there) pass one more
MLP, which aligns them; then all are joined on channels.

Deviations: the weights that sum to one are a softmax of learned logits, equal at first. Which deep layers of the other
encoders are merged is a share (the paper: 19 to 24 of 24). The linear layer to the language model's width is the connector's
task. No code was published to compare with.

Shapes: K encoders of L_k layers [B, N_k, D_k] -> [B, N_1, D_1 + ... + D_K].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from tessera.config import config
from tessera.errors import UserError
from tessera.models.contracts import Experts
from tessera.nn import initialise
from tessera.nn.tokens import VisualTokens, from_grid, resample
from tessera.nn.vit import FeedForward
from tessera.registry import part

Merge = Literal["single", "mean_half", "mean", "layerscale", "lln_layerscale"]


class LayerMerge(nn.Module):
    """Layers [B, N, D] of one encoder, shallow to deep -> one [B, N, D].

    single: the last; mean_half: mean of the deeper half; mean: of all; layerscale: weighted; lln_layerscale: weighted, each
    behind its own linear layer and LayerNorm.
    """

    def __init__(self, width: int, layers: int, merge: Merge) -> None:
        super().__init__()
        self.merge = merge
        self.layers = layers
        if merge in ("layerscale", "lln_layerscale"):
            self.logits = nn.Parameter(torch.zeros(layers))
        if merge == "lln_layerscale":
            self.lln = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)) for _ in range(layers))

    def init_weights(self) -> None:
        """Equal weights; linear layers that keep the variance of what passes through."""
        initialise.tree(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise.linear(module, module.in_features**-0.5)
        if self.merge in ("layerscale", "lln_layerscale"):
            init.zeros_(self.logits)

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        if self.merge == "single":
            return layers[-1]
        if self.merge == "mean_half":
            layers = layers[len(layers) // 2 :]
        if self.merge in ("mean", "mean_half"):
            return sum(layers[1:], layers[0]) / len(layers)
        weights = self.logits.softmax(0).to(layers[0].dtype)
        if self.merge == "lln_layerscale":
            layers = [lln(layer) for lln, layer in zip(self.lln, layers, strict=True)]
        return sum((w * layer for w, layer in zip(weights[1:], layers[1:], strict=True)), weights[0] * layers[0])


@part("comm", socket="experts", catalog=166)
class COMM(Experts):
    """Layers of all encoders -> one set of visual tokens on the first encoder's grid."""

    reads_levels = True

    @config
    class Config:
        """merge: how an encoder's layers become one. shares: of each encoder's layers, counted from the last, how many take
        part (the last entry holds for all further encoders). align: width of the hidden layer of the MLP behind every encoder but
        the first, as a multiple of the encoder's; 0: no MLP."""

        merge: Merge = "lln_layerscale"
        shares: tuple[float, ...] = (1.0, 0.25)
        align: int = 4

        def validate_ranges(self) -> None:
            if not self.shares or not all(0 < share <= 1 for share in self.shares):
                raise ValueError(f"shares are above 0 and at most 1, at least one, not {self.shares}.")
            if self.align < 0:
                raise ValueError(f"align is at least 0, not {self.align}.")

    def __init__(
        self,
        config: Config,
        widths: Sequence[int],
        grids: Sequence[tuple[int, int]],
        levels: Sequence[int] | None = None,
    ) -> None:
        """levels: how many layers each encoder shows; one each by default."""
        super().__init__(config, widths, grids)
        self.width = sum(widths)
        self.grid = grids[0]
        shown = list(levels) if levels is not None else [1] * len(widths)
        shares = [config.shares[min(k, len(config.shares) - 1)] for k in range(len(widths))]
        self.counts = [max(1, math.ceil(share * count)) for share, count in zip(shares, shown, strict=True)]
        self.merges = nn.ModuleList(
            LayerMerge(width, count, config.merge) for width, count in zip(widths, self.counts, strict=True)
        )
        aligned = config.align and len(widths) > 1
        self.align = nn.ModuleList(FeedForward(width, config.align * width) for width in widths[1:]) if aligned else None
        self.init_weights()

    def init_weights(self) -> None:
        """See `LayerMerge`; the MLPs alike."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise.linear(module, module.in_features**-0.5)
        for merge in self.merges:
            assert isinstance(merge, LayerMerge)
            merge.init_weights()

    def forward(self, sets: Sequence[VisualTokens]) -> VisualTokens:
        """K sets with their levels -> [B, N_1, sum of D_k].

        Raises `UserError` for a set that is not a full grid, or without the levels that were announced.
        """
        joined = []
        for index, tokens in enumerate(sets):
            if tokens.grid is None:
                raise UserError(f"experts 'comm' needs full grids; the tokens of encoder {index} are not one.")
            layers = tokens.levels if tokens.levels is not None else (tokens.features,)
            count = self.counts[index]
            if len(layers) < count:
                raise UserError(f"experts 'comm' merges {count} layers of encoder {index}, but was given {len(layers)}.")
            merged = self.merges[index](layers[-count:])
            if index and self.align is not None:
                merged = self.align[index - 1](merged)
            joined.append(resample(merged, tokens.grid, self.grid))
        return from_grid(torch.cat(joined, dim=-1), self.grid, source=0 if len(sets) == 1 else -1)
