"""Mini-Monkey's multi-scale adaptive crops (MSAC): three layers of views, so that no object is cut in all of them.

Source: Huang et al., "Mini-Monkey: Multi-Scale Adaptive Cropping for Multimodal Large Language Models", 2024,
arXiv:2408.02034. The detail layer cuts the picture by the grid whose aspect ratio is closest to its own; the adaptive layer
cuts it by a second grid whose cut lines fall elsewhere; the global layer is the whole picture in one view. The scale
compression that the paper adds for the detail layer's tokens is the part `scm` of socket `tokens`.

Deviations: the released code accepts an adaptive grid as soon as its columns *or* its rows do not divide the detail grid's,
so that a line in the other direction may coincide, and 6 columns pass beside 4 although both cut in the middle. Here both
directions must have no line in common: the columns of the two grids are coprime, and so are the rows (`cuts="released"` gives
the released rule). The adaptive layer may have 9 tiles instead of 7: the square grid that shares no line with 2 x 2 is 3 x 3.
The released code leaves the thumbnail out when the grid is one tile; here it is always there (with the default ranges no grid
is one tile). Views come in the order detail, adaptive, global, as the compression needs it (later tokens look back at the detail
layer).

Shapes: a picture of any size -> detail c r tiles, adaptive c' r' tiles, 1 thumbnail, all `tile` x `tile` pixels, each with
its box in the unit square.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import gcd
from typing import Any, Literal, TypeAlias

from PIL import Image

from tessera.config import config
from tessera.errors import UserError
from tessera.hosts.pixels import Pixels, View
from tessera.registry import part

Grid: TypeAlias = tuple[int, int]
"""(columns, rows)."""


@part("mini_monkey", socket="pixels", catalog=298)
class MiniMonkey(Pixels):
    """Cuts a picture into the detail layer, the adaptive layer and the thumbnail."""

    @config
    class Config:
        """tile side of a view in pixels; least and most tiles of the detail grid and of the adaptive grid; cuts "apart" (no
        line in common) or "released" (the rule of the released code)."""

        tile: int = 448
        detail: tuple[int, int] = (4, 12)
        adaptive: tuple[int, int] = (3, 9)
        cuts: Literal["apart", "released"] = "apart"

        def validate_ranges(self) -> None:
            if self.tile < 1:
                raise ValueError(f"tile must be at least 1 pixel, not {self.tile}.")
            for name, (least, most) in (("detail", self.detail), ("adaptive", self.adaptive)):
                if not 1 <= least <= most:
                    raise ValueError(f"{name} is (least, most) tiles with 1 <= least <= most, not {(least, most)}.")

    @classmethod
    def example(cls, side: int) -> dict[str, Any]:
        """Tiles of that size."""
        return {"tile": side}

    def grids(self, width: int, height: int) -> tuple[Grid, Grid]:
        """(detail, adaptive) for a picture of so many pixels. Raises `UserError` when no adaptive grid lies apart."""
        tile = self.config.tile
        detail = closest(candidates(*self.config.detail), width, height, tile)
        apart = lines_apart if self.config.cuts == "apart" else released_rule
        allowed = [grid for grid in candidates(*self.config.adaptive) if apart(detail, grid)]
        if not allowed:
            least, most = self.config.adaptive
            raise UserError(
                f"pixels 'mini_monkey': no grid of {least} to {most} tiles has its cuts apart from {detail[0]} x {detail[1]}; "
                f"widen adaptive={self.config.adaptive}."
            )
        return detail, closest(allowed, width, height, tile)

    def views(self, image: Image.Image) -> list[View]:
        """Detail tiles, adaptive tiles (each in reading order), thumbnail."""
        picture = image.convert("RGB")
        detail, adaptive = self.grids(*picture.size)
        tile = self.config.tile
        whole = View(picture.resize((tile, tile)), layer="global")
        return [*cut(picture, detail, tile, "detail"), *cut(picture, adaptive, tile, "adaptive"), whole]


def candidates(least: int, most: int) -> list[Grid]:
    """All grids of `least` to `most` tiles, those with fewer tiles first, wider last."""
    grids = ((c, r) for c in range(1, most + 1) for r in range(1, most // c + 1) if c * r >= least)
    return sorted(grids, key=lambda grid: (grid[0] * grid[1], grid))


def closest(grids: Iterable[Grid], width: int, height: int, tile: int) -> Grid:
    """The grid with the aspect ratio closest to the picture's; of equal ones a later one if the picture has over half its
    pixels."""
    best, least = (1, 1), float("inf")
    for columns, rows in grids:
        difference = abs(width / height - columns / rows)
        if difference < least or (difference == least and width * height > 0.5 * tile * tile * columns * rows):
            best, least = (columns, rows), difference
    return best


def lines_apart(first: Grid, second: Grid) -> bool:
    """Whether no interior cut line of one grid coincides with one of the other: k/c = k'/c' needs a common divisor."""
    return gcd(first[0], second[0]) == 1 and gcd(first[1], second[1]) == 1


def released_rule(first: Grid, second: Grid) -> bool:
    """What the released code asks of the adaptive grid `second`."""
    return first[0] % second[0] != 0 or first[1] % second[1] != 0


def cut(picture: Image.Image, grid: Grid, tile: int, layer: str) -> list[View]:
    """The picture stretched to the grid and cut into its tiles, in reading order."""
    columns, rows = grid
    stretched = picture.resize((columns * tile, rows * tile))
    found = []
    for row in range(rows):
        for column in range(columns):
            pixels = (column * tile, row * tile, (column + 1) * tile, (row + 1) * tile)
            box = (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
            found.append(View(stretched.crop(pixels), box, layer))
    return found
