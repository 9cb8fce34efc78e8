"""Boxes as text: four whole hundredths, "x0 y0 x1 y1".

The image is cut into 100 x 100 cells, numbered 00..99 from the left and from the top. A box text names the
closed range of cells that the box touches: `x0` is the first column, `x1` the last one, so "00 00 99 99" is
the whole image and "12 20 12 20" one cell. `cell_box` gives the region that a text denotes;
`box_text(cell_box(cells))` gives the same text back.
"""

from __future__ import annotations

import math
import re

from tessera.world.scene import Box

Cells = tuple[int, int, int, int]

# Keeps edges such as 0.29 (whose hundredfold is 28.999999999999996) in the cell they were meant for.
_SLACK = 1e-4  # of a cell: an edge this near to a line of cells counts as on it
_TEXT = re.compile(r"\s*[\[(]?\s*(\d{1,2})[\s,]+(\d{1,2})[\s,]+(\d{1,2})[\s,]+(\d{1,2})\s*[\])]?\s*\.?\s*")


def box_cells(box: Box) -> Cells:
    """The closed range of cells, (x0, y0, x1, y1) in 0..99, that a box of the unit square touches."""
    x0, y0, x1, y1 = box
    left, top = _first(x0), _first(y0)
    return left, top, max(left, _last(x1)), max(top, _last(y1))


def cell_box(cells: Cells) -> Box:
    """The region of the unit square that a closed range of cells covers."""
    x0, y0, x1, y1 = cells
    return x0 / 100, y0 / 100, (x1 + 1) / 100, (y1 + 1) / 100


def cells_text(cells: Cells) -> str:
    """Cells as text with two digits each: (1, 20, 45, 60) is "01 20 45 60"."""
    x0, y0, x1, y1 = cells
    return f"{x0:02d} {y0:02d} {x1:02d} {y1:02d}"


def box_text(box: Box) -> str:
    """The text of a box of the unit square; see the module's description."""
    return cells_text(box_cells(box))


def parse_box(text: str) -> Cells | None:
    """The cells that a text names, or None if it is not four numbers of 0..99 with x0 <= x1 and y0 <= y1.

    Commas between the numbers, brackets around them and a full stop at the end are allowed; other words are
    not.
    """
    match = _TEXT.fullmatch(text)
    if match is None:
        return None
    x0, y0, x1, y1 = map(int, match.groups())
    return (x0, y0, x1, y1) if x0 <= x1 and y0 <= y1 else None


def iou(a: Cells, b: Cells) -> float:
    """Intersection over union of two closed ranges of cells, in 0..1: 1 exactly if they are equal."""
    return box_iou((a[0], a[1], a[2] + 1, a[3] + 1), (b[0], b[1], b[2] + 1, b[3] + 1))


def box_iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes with edges in any one unit, in 0..1; 0 for empty boxes."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = width * height
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def _first(edge: float) -> int:
    return min(99, max(0, math.floor(edge * 100 + _SLACK)))


def _last(edge: float) -> int:
    return min(99, max(0, math.ceil(edge * 100 - _SLACK) - 1))
