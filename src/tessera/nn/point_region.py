"""Attention of one point to its own region: every token of a coarse raster reads only the square of the fine one below it.

Shapes: B images, a fine raster of (s h) x (s w) places over a coarse one of h x w, D channels.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def regions(features: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """[B, rows columns, D] on `grid` -> [B, h w, s^2, D]: the squares in reading order, and so are the places of each."""
    rows, columns = grid[0] // side, grid[1] // side
    board = features.unflatten(1, (rows, side, columns, side))
    return board.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def shrink(features: Tensor, grid: tuple[int, int], side: int) -> Tensor:
    """[B, rows columns, D] on `grid` -> [B, h w, D]: bilinear, by the factor s, without antialiasing."""
    image = features.unflatten(1, grid).permute(0, 3, 1, 2)
    small = F.interpolate(image.float(), size=(grid[0] // side, grid[1] // side), mode="bilinear").to(features.dtype)
    return small.flatten(2).transpose(1, 2)


def attend_regions(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Query [B, P, D], key and value [B, P, s^2, D] -> [B, P, D]: each point over its own region, `heads` heads."""
    batch, points, place, width = key.shape

    def by_head(x: Tensor, length: int) -> Tensor:
        return x.reshape(batch * points, length, heads, width // heads).transpose(1, 2)

    mixed = F.scaled_dot_product_attention(by_head(query, 1), by_head(key, place), by_head(value, place))
    return mixed.transpose(1, 2).reshape(batch, points, width)
