"""Choosing which tokens stay: the mechanisms that several token-reduction parts share.

Shapes: B rows, S tokens of a prompt, K of them left, G groups per row (images, blocks of a raster, rows of a block).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from tessera.errors import UserError


def check_shares(keep: Sequence[float]) -> None:
    """Raises `ValueError` unless `keep` holds shares from 0 to 1 that do not rise."""
    if not keep or not all(0 <= kept <= 1 for kept in keep):
        raise ValueError(f"keep holds shares from 0 to 1, at least one, not {tuple(keep)}.")
    if any(later > earlier for earlier, later in pairwise(keep)):
        raise ValueError(f"keep must not rise: tokens that are gone do not come back; got {tuple(keep)}.")


def check_layers(layers: Sequence[int]) -> None:
    """Raises `ValueError` unless `layers` are rising numbers from 0."""
    if not layers or layers[0] < 0 or any(later <= earlier for earlier, later in pairwise(layers)):
        raise ValueError(f"layers must be rising numbers from 0, not {tuple(layers)}.")


def stages(name: str, keep: Sequence[float], layers: Sequence[int], count: int) -> dict[int, float]:
    """Layer -> share that goes on from it, without those where everything does.

    Raises `UserError` where part `name`'s options do not fit each other or a host of `count` layers.
    """
    if len(layers) != len(keep):
        raise UserError(f"{name}: keep has {len(keep)} shares and layers {len(layers)} layers; they must match.")
    if layers[-1] >= count:
        raise UserError(f"{name}: layer {layers[-1]} does not exist; the host has layers 0 to {count - 1}.")
    return {layer: kept for layer, kept in zip(layers, keep, strict=True) if kept < 1}


def share(count: Tensor, ratio: float) -> Tensor:
    """`ratio` of each `count` (int64), rounded down as `int(count * ratio)` does in double precision."""
    return (count.double() * ratio).floor().long()


def keep_top(score: Tensor, candidates: Tensor, count: Tensor) -> Tensor:
    """[B, K] bool: everything that is no candidate, and per row the `count [B]` candidates [B, K] with the highest
    `score [B, K]`; of equal ones the earlier."""
    lowest = torch.finfo(torch.float32).min  # a candidate of score -inf still comes before what is no candidate
    ranked = score.float().clamp(min=lowest).masked_fill(~candidates, -torch.inf).argsort(dim=1, descending=True, stable=True)
    chosen = torch.arange(score.shape[1], device=score.device) < count[:, None]
    return ~candidates | torch.zeros_like(candidates).scatter(1, ranked, chosen)


def group_sizes(group: Tensor, groups: int) -> Tensor:
    """Group [B, K] int64, -1 for none -> tokens of each group [B, G] int64."""
    sizes = group.new_zeros(group.shape[0], groups + 1)
    return sizes.scatter_add(1, group + 1, torch.ones_like(group))[:, 1:]


def top_by_group(score: Tensor, group: Tensor, count: Tensor) -> Tensor:
    """[B, K] bool: in each group the `count [B, G]` tokens with the highest `score [B, K]`; of equal ones the earlier.

    `group [B, K]` int64 in [0, G), or -1 for tokens that are in none (never chosen).
    """
    sizes = group_sizes(group, count.shape[1])
    none = group.shape[1] - sizes.sum(1, keepdim=True)
    starts = torch.cat([none, sizes], dim=1).cumsum(1) - torch.cat([none, sizes], dim=1)
    ranked = score.float().argsort(dim=1, descending=True, stable=True)
    order = ranked.gather(1, group.gather(1, ranked).argsort(dim=1, stable=True))
    sorted_group = group.gather(1, order) + 1
    rank = torch.arange(group.shape[1], device=group.device) - starts.gather(1, sorted_group)
    wanted = torch.cat([torch.zeros_like(none), count], dim=1).gather(1, sorted_group)
    return torch.zeros_like(group, dtype=torch.bool).scatter(1, order, rank < wanted)


def keep_share(score: Tensor, group: Tensor, index: Tensor, present: Tensor, ratio: float) -> Tensor:
    """[B, K] bool: everything that is in no group, and of each group floor(ratio x its size in the prompt) tokens, by score.

    group [B, S] (-1 for none) tells of the full prompt, `index [B, K]` which of its tokens are left, present [B, K] bool which of
    those are no fillers, score [B, K] how much they matter.
    """
    size = share(group_sizes(group, max(int(group.max()) + 1, 1)), ratio)
    left = group.gather(1, index).masked_fill(~present, -1)
    return (left < 0) | top_by_group(score, left, size)


def hashed(number: Tensor, seed: int) -> Tensor:
    """int64 >= 0 -> int64 in [0, 2^24), evenly scattered, the same for the same (number, seed) on every machine.

    A finaliser of two multiplications and three shifts on 32 bits; 24 bits, so that float32 holds the result.
    """
    mask = 0xFFFFFFFF
    mixed = (number + (seed * 0x9E3779B9 & mask) + 1) & mask
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        mixed = ((mixed ^ (mixed >> shift)) * factor) & mask
    return (mixed ^ (mixed >> 16)) >> 8


def dispersed(row: Tensor, column: Tensor) -> Tensor:
    """Places of a raster (int64, below 4096) -> int64 key: for every k the k places with the smallest keys lie evenly spread.

    The order of a Bayer matrix: the places of the coarsest lattice first, then each finer one. Along a single row it
    is the bit-reversed count.
    """
    bits = 12
    key = torch.zeros_like(row)
    for bit in range(bits):
        x, y = (column >> bit) & 1, (row >> bit) & 1
        # Within a square of four: top left, bottom right, top right, bottom left.
        key = key | ((((x ^ y) << 1) | y) << (2 * (bits - 1 - bit)))
    return key
