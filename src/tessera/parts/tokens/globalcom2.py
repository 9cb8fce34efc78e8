"""GlobalCom2 lets the thumbnail decide how much of each tile stays, and which tokens.

Source: Liu et al., "Global Compression Commander: Plug-and-Play Inference Acceleration for High-Resolution Large
Vision-Language Models", 2025, arXiv:2501.05179. Training-free, for hosts that show an image as a thumbnail and tiles. Of the
thumbnail stays the share R, by the class token's attention. A tile's share is R (1 + sigma_j - mean sigma), at most 1, where
sigma is the softmax over tiles of the thumbnail's attention inside of each, divided by a temperature. Inside a tile tokens are
ranked by their own attention plus the thumbnail's, resized to the canvas, both L2-normalised over the tile.

Deviations: none in the equations. As in the authors' code, attention means the class token's logits (before the softmax) in
the tower's last block, averaged over heads. Their code differs in what it does with the tokens that stay: it hands those of the
thumbnail on in the order of their attention, numbers all positions anew, and puts a newline token behind the rows of padding
too. Here tokens stay in reading order with their positions (`positions="reindex"` numbers them anew), and newline tokens, which
the host has put behind the rows of the unpadded canvas, stay and are not counted.

Shapes: T tiles, R x C raster of the thumbnail, H x W raster of the canvas, V visual tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.config import config
from tessera.errors import UserError
from tessera.hosts.part import LayerView
from tessera.hosts.token_reduction import OneDrop
from tessera.hosts.values import Tap
from tessera.nn.layout import Block
from tessera.nn.raster import Raster, on_prompt, raster
from tessera.nn.reduction import share, top_by_group
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.hosts.contract import Host


def tile_sums(thumbnail: Tensor, tiles: tuple[int, int]) -> Tensor:
    """The thumbnail's scores [R, C] summed over the cells of a lattice of `tiles` (rows, columns) -> [T] float64.

    Cells are R // rows by C // columns places; what is left over belongs to the last ones.
    """
    rows, columns = (
        (torch.arange(side, device=thumbnail.device) // max(side // count, 1)).clamp(max=count - 1)
        for side, count in zip(thumbnail.shape, tiles, strict=True)
    )
    cell = rows[:, None] * tiles[1] + columns
    sums = torch.zeros(tiles[0] * tiles[1], dtype=torch.float64, device=thumbnail.device)
    return sums.index_add(0, cell.flatten(), thumbnail.double().flatten())


def tile_shares(sums: Tensor, keep: float, temperature: float) -> Tensor:
    """Sums [T] -> share of each tile's tokens that stays [T] float64: mean `keep` unless one is cut to 1."""
    sigma = ((sums - sums.max()) / temperature).softmax(0)
    return (keep * (1 + sigma - sigma.mean())).clamp(max=1)


def lattice(canvas: Block, side: tuple[int, int]) -> tuple[tuple[int, int], Tensor]:
    """How tiles of `side` (rows, columns) make up a canvas: their number (rows, columns), the tile of each place [H, W] int64.

    A canvas that is no multiple of the side had its padding cut off, as much on either side.
    """
    tiles = (-(-canvas.rows // side[0]), -(-canvas.columns // side[1]))
    row, column = (
        (torch.arange(length) + (count * step - length) // 2) // step
        for length, count, step in zip((canvas.rows, canvas.columns), tiles, side, strict=True)
    )
    return tiles, row[:, None] * tiles[1] + column


def guided(own: Tensor, thumbnail: Tensor, tile: Tensor, tiles: int) -> Tensor:
    """Scores of the canvas: own [H, W], thumbnail [R, C], tile [H, W] int64 below `tiles` -> [H, W].

    Own scores plus the thumbnail's, bilinearly resized to the canvas, each divided by its L2 norm over the tile.
    """
    seen = F.interpolate(thumbnail[None, None].float(), size=own.shape, mode="bilinear", align_corners=False)[0, 0]
    score = torch.zeros_like(seen)
    for values in (own.float(), seen):
        norms = values.new_zeros(tiles).index_add(0, tile.flatten(), values.square().flatten()).sqrt()
        score = score + values / norms.clamp(min=1e-12)[tile]
    return score


def compressed(score: Tensor, places: Raster, keep: float, temperature: float) -> Tensor:
    """Score [V] -> [V] bool, the tokens that stay. Raises `UserError` for an image that is no thumbnail with a canvas."""
    group = torch.full_like(places.block, -1)
    ranked = torch.zeros_like(score, dtype=torch.float32)
    counts: list[Tensor] = []
    total = 0
    for whole, canvas, first in _pairs(places):
        there = [(places.block == first + i) & ~places.newline for i in (0, 1)]
        thumbnail = score[there[0]].view(whole.rows, whole.columns)
        tiles, tile = lattice(canvas, (whole.rows, whole.columns))
        tile = tile.to(score.device)
        number = tiles[0] * tiles[1]
        ranked[there[0]] = thumbnail.flatten().float()
        ranked[there[1]] = guided(score[there[1]].view(canvas.rows, canvas.columns), thumbnail, tile, number).flatten()
        group[there[0]] = total
        group[there[1]] = total + 1 + tile.flatten()
        sizes = tile.flatten().bincount(minlength=number)
        shares = tile_shares(tile_sums(thumbnail, tiles), keep, temperature)
        counts += [share(torch.tensor([thumbnail.numel()], device=score.device), keep), (sizes * shares).floor().long()]
        total += 1 + number
    return (group < 0) | top_by_group(ranked[None], group[None], torch.cat(counts)[None])[0]


def _pairs(places: Raster) -> list[tuple[Block, Block, int]]:
    """Thumbnail and canvas of every image, with the number of the first of the two blocks."""
    blocks = places.blocks
    both = list(zip(blocks[::2], blocks[1::2], strict=False))
    fits = len(blocks) % 2 == 0 and all(a == b and whole.whole and not canvas.whole for (a, whole), (b, canvas) in both)
    if not blocks or not fits:
        raise UserError(
            "globalcom2 lets a thumbnail guide the tiles of the same image; this host shows an image otherwise, as one raster. "
            "fopru prunes by attention without tiles."
        )
    return [(whole, canvas, 2 * number) for number, ((_, whole), (_, canvas)) in enumerate(both)]


@part("globalcom2", socket="tokens", catalog=347)
class GlobalCom2(OneDrop):
    """Compresses thumbnail and tiles in front of the first decoder layer."""

    needs = ("tower attention", "class token", "token map", "raster")
    reads_question = False

    @config
    class Config(OneDrop.Config):
        """temperature: of the softmax over tiles; keep is the share R of the thumbnail's and, on average, of the tiles' tokens.
        block: tower block whose attention is read, negative ones from the last."""

        temperature: float = 10.0
        block: int = -1

        def validate_temperature(self) -> None:
            if self.temperature <= 0:
                raise ValueError(f"temperature must be above 0, not {self.temperature}.")

    def tower_taps(self, host: Host) -> Mapping[int, Tap]:
        """What the class token asks of the patches in one block."""
        return {} if self.config.keep >= 1 else {self.config.block: "class logits"}

    def keep(self, view: LayerView, ratio: float) -> Tensor:
        """What stays of thumbnail and tiles."""
        places = raster(view.layouts(), view.hidden.device)
        stays = compressed(view.tower_scores()[view.visual], places, ratio, self.config.temperature)
        return on_prompt(stays, view.visual, True)
