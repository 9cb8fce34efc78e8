"""What charts and documents are drawn on: a sheet that records the strings written on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from PIL import Image

from tessera.world.scene import Box, Panel
from tessera.world.text import RGB, Face, draw_line, fit_size, text_layout

Role = Literal["title", "label", "value", "axis"]
Drawn = list[tuple[str, Box, Role]]
Area = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels

PAPER: RGB = (252, 252, 250)
INK: RGB = (24, 24, 30)
FRAME: RGB = (120, 122, 128)
GRID: RGB = (206, 208, 212)


def inset(area: Area, by: int) -> Area:
    """The area without a margin of `by` pixels on every side; at least one pixel stays."""
    x0, y0, x1, y1 = area
    return x0 + by, y0 + by, max(x0 + by + 1, x1 - by), max(y0 + by + 1, y1 - by)


def cap(size: int) -> int:
    """Height of capitals in pixels."""
    return max(1, (73 * size + 50) // 100)


def common_size(texts: Sequence[str], width: float, tall: float, face: Face = "bold") -> int:
    """The largest font size at which no text is wider than `width` and no capital higher than `tall`."""
    widest = max(texts, key=lambda text: text_layout(text, 64, face)[1])
    size = min(fit_size(widest, width, 10_000, face), int(tall * 100 / 73))
    return max(1, size)


class Sheet:
    """An image being written on, with a record of the strings."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.drawn: Drawn = []

    def write(
        self,
        text: str,
        role: Role,
        at: float,
        middle: float,
        size: int,
        *,
        anchor: float = 0.5,
        ink: RGB = INK,
        face: Face = "bold",
    ) -> None:
        """Write with capitals centred on height `middle`.

        `at` is the line's left end (anchor 0), centre (0.5) or right end (1).
        """
        baseline = int(middle + cap(size) / 2 + 0.5)
        x = int(at - anchor * text_layout(text, size, face)[1] + 0.5)
        boxes = draw_line(self.image, text, x, baseline, size, ink, face)
        width, height = self.image.size
        box = (boxes[0][0] / width, boxes[0][1] / height, boxes[-1][2] / width, boxes[0][3] / height)
        self.drawn.append((text, box, role))

    def fill(self, colour: RGB, x0: int, y0: int, x1: int, y1: int) -> None:
        if x1 > x0 and y1 > y0:
            self.image.paste(colour, (x0, y0, x1, y1))

    def title(self, panel: Panel, area: Area) -> Area:
        """Write the title, if any, in the area's uppermost eighth; what is left of the area."""
        x0, y0, x1, y1 = area
        if not panel.title:
            return area
        tall = max(2, (y1 - y0) * 13 // 100)
        size = common_size([panel.title], (x1 - x0) * 0.9, tall * 0.62)
        self.write(panel.title, "title", (x0 + x1) / 2, y0 + tall * 0.55, size)
        return x0, y0 + tall, x1, y1
