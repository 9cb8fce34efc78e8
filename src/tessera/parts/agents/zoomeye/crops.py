"""Boxes (x0, y0, x1, y1) in pixels, and the crops that show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

from PIL import Image, ImageDraw

from tessera.parts.agents.zoomeye.tree import Region

Box: TypeAlias = tuple[int, int, int, int]


def crop_box(region: Region, size: tuple[int, int], smallest: int, scale: float) -> Box:
    """What is shown of a region: at least `smallest` pixels a side, times `scale`, around its middle, within the picture."""
    x, y, width, height = region
    wide, high = int(max(width, smallest) * scale), int(max(height, smallest) * scale)
    left, top = max(0, int(x + width / 2) - wide // 2), max(0, int(y + height / 2) - high // 2)
    return left, top, min(left + wide, size[0]), min(top + high, size[1])


def union(boxes: Iterable[Box]) -> Box:
    """The smallest box around all."""
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return min(x0), min(y0), max(x1), max(y1)


def near(first: Box, second: Box, distance: int) -> bool:
    """Whether two boxes overlap when each grows by `distance` on every side."""
    return (
        min(first[2], second[2]) - max(first[0], second[0]) > -2 * distance
        and min(first[3], second[3]) - max(first[1], second[1]) > -2 * distance
    )


def merged(boxes: Sequence[Box], distance: int) -> list[Box]:
    """Boxes that are near each other become one, pair by pair, until none are."""
    rest = list(boxes)
    while True:
        made: list[Box] = []
        used: set[int] = set()
        for i, box in enumerate(rest):
            if i in used:
                continue
            other = next((j for j, b in enumerate(rest) if j != i and j not in used and near(box, b, distance)), None)
            used |= {i} if other is None else {i, other}
            made.append(box if other is None else union((box, rest[other])))
        if len(made) == len(rest):
            return made
        rest = made


def squared(picture: Image.Image, background: tuple[int, int, int]) -> tuple[Image.Image, int, int]:
    """The picture in the middle of a square, and where its left and upper edge are in it."""
    side = max(picture.size)
    left, top = (side - picture.width) // 2, (side - picture.height) // 2
    square = Image.new("RGB", (side, side), background)
    square.paste(picture, (left, top))
    return square, left, top


def framed(square: Image.Image, box: Box, colour: str) -> Box:
    """Draws a frame around a box; returns the box with its frame."""
    thick = max(1, square.width // 120)
    outer = (
        max(0, box[0] - thick),
        max(0, box[1] - thick),
        min(square.width, box[2] + thick),
        min(square.height, box[3] + thick),
    )
    ImageDraw.Draw(square).rectangle(outer, outline=colour, width=thick)
    return outer


def side_by_side(square: Image.Image, first: Box, second: Box, size: int, background: tuple[int, int, int]) -> Image.Image:
    """Two far crops in one image, the left one left, as much higher or lower than the other as there is room for."""
    left, right = sorted((first, second), key=lambda box: box[0])
    offset = max(-size, min(size, (right[3] + right[1]) // 2 - (left[3] + left[1]) // 2))
    shown = Image.new("RGB", (2 * size, 2 * size), background)
    shown.paste(square.crop(left).resize((size, size)), (0, size // 2 - offset // 2))
    shown.paste(square.crop(right).resize((size, size)), (size, size // 2 + offset // 2))
    return shown


def unit(box: Box, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Pixels -> the picture's unit square."""
    return box[0] / size[0], box[1] / size[1], box[2] / size[0], box[3] / size[1]
