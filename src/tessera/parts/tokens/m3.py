"""M3 shows the language model a coarser raster: squares of visual tokens become their mean.

Source: Cai et al., "Matryoshka Multimodal Models", 2024, arXiv:2405.17430. No parameters: behind the projector the raster of an
image is average-pooled, 24 x 24 to 12 x 12, 6 x 6, 3 x 3 or one token; each coarser set is pooled from the finer one. A model
that was trained on all scales answers with as many tokens as one wants to pay.

Deviations: the raster that is pooled is the one that the host tells; where tiles form one canvas, squares are cut from the
canvas, not inside each tile, and squares at its edge are smaller (the authors' code drops what does not fill a square). A
pooled token stands at the place in the middle of its square (the upper left one of four), and positions are kept unless
`positions="reindex"`, as in the authors' code. Of newlines, one stays per row of squares. Training on all scales is not
part of it.

Shapes: V visual tokens of the batch, C squares, f side of a square, E width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tessera.config import config
from tessera.hosts.part import LayerView
from tessera.hosts.token_reduction import TokenReduction
from tessera.hosts.values import Selection
from tessera.nn.raster import Raster, raster
from tessera.registry import part


def squares(places: Raster, factor: int) -> tuple[Tensor, Tensor, Tensor]:
    """The squares of `factor` x `factor` places of all blocks, in reading order.

    -> members [C, f^2] int64, numbers of the visual tokens in each square, -1 where the block ends; slot [C] int64, the member
    in its middle; keep [V] bool, tokens that stay: slots, one newline per row of squares, and what is in no block.
    """
    device = places.row.device
    rows, columns = (
        torch.tensor([getattr(block, side) for _, block in places.blocks], dtype=torch.int64, device=device)
        for side in ("rows", "columns")
    )
    across = -(-columns // factor)
    counts = -(-rows // factor) * across
    first = counts.cumsum(0) - counts
    block = places.block.clamp(min=0)
    inside = (places.block >= 0) & ~places.newline
    # A square at the lower or right edge may be smaller; its middle is that of what is there.
    height = (rows[block] - places.row // factor * factor).clamp(max=factor)
    width = (columns[block] - places.column // factor * factor).clamp(max=factor)
    middle_row = places.row % factor == (height - 1) // 2
    middle = inside & middle_row & (places.column % factor == (width - 1) // 2)
    square = first[block] + places.row // factor * across[block] + places.column // factor
    within = places.row % factor * factor + places.column % factor
    token = torch.arange(len(places.row), device=device)
    members = torch.full((int(counts.sum()), factor * factor), -1, dtype=torch.int64, device=device)
    members[square[inside], within[inside]] = token[inside]
    slot = torch.zeros(members.shape[0], dtype=torch.int64, device=device)
    slot[square[middle]] = token[middle]
    return members, slot, middle | (places.newline & middle_row) | (places.block < 0)


def pooled(tokens: Tensor, members: Tensor) -> Tensor:
    """Means of tokens [V, E] over members [C, f^2] (-1: none) -> [C, E], summed in float32."""
    there = members >= 0
    values = tokens[members.clamp(min=0)].float() * there[..., None]
    return (values.sum(1) / there.sum(1, keepdim=True)).to(tokens.dtype)


@part("m3", socket="tokens", catalog=299)
class M3(TokenReduction):
    """Pools the raster of every image in front of the first decoder layer."""

    needs = ("raster",)
    reads_question = False

    @config
    class Config(TokenReduction.Config):
        """factor: side of the squares that become one token; of 24 x 24 tokens 1, 2, 4, 8, 24 leave 576, 144, 36, 9, 1."""

        factor: int = 2

        def validate_factor(self) -> None:
            if self.factor < 1:
                raise ValueError(f"factor must be at least 1, not {self.factor}.")

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Squares of one token."""
        return {"factor": 1}

    @classmethod
    def example(cls, layers: int) -> dict[str, Any]:
        """A quarter of the tokens: no square pools to half of them."""
        return {"factor": 2}

    def shares(self, layers: int) -> Mapping[int, float]:
        """The first layer."""
        return {} if self.config.factor == 1 else {0: self.config.factor**-2}

    def merge(self, view: LayerView, ratio: float) -> Selection:
        """One token per square, and what is in none."""
        members, slot, stays = squares(raster(view.layouts(), view.hidden.device), self.config.factor)
        tokens = view.hidden[view.visual]
        tokens = tokens.index_copy(0, slot, pooled(tokens, members))
        hidden = view.hidden.masked_scatter(view.visual[..., None], tokens)
        return Selection(keep=(~view.visual).masked_scatter(view.visual, stays), hidden=hidden)

    @classmethod
    def budget(cls, share: float, layers: int) -> dict[str, Any]:
        """The smallest squares that leave at most `share` of a large raster."""
        return {"factor": math.ceil(share**-0.5 - 1e-9)}
