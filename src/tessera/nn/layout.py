"""Where the visual tokens of an image stand: rasters inside the tokens of one image."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """A raster of visual tokens inside one image's tokens.

    start    index of its first token among the image's tokens; rows x columns tokens follow in reading order
    newline  whether each row is followed by one more token that is no place of the image
    box      (x0, y0, x1, y1) of what it shows, in the image's unit square
    whole    whether it shows the whole image (a thumbnail) beside tiles that show more detail
    """

    start: int
    rows: int
    columns: int
    newline: bool = False
    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the `tokens` visual tokens of one image stand; no blocks when the family gives no raster (a Q-Former)."""

    tokens: int
    blocks: tuple[Block, ...] = ()
