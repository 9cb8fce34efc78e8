"""Drawing of charts and documents.

Straight edges and text are drawn at the image's own resolution, lines and circles three times finer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal, get_args

from PIL import Image, ImageDraw

from tessera.errors import UserError, unknown
from tessera.world.backgrounds import COLOURS, contrast_ink
from tessera.world.scene import Box, Panel
from tessera.world.text import RGB, Face, draw_line, fit_size, text_layout, to_pixels

PanelKind = Literal["bar", "line", "pie", "table", "receipt"]
Role = Literal["title", "label", "value", "axis"]
Drawn = list[tuple[str, Box, Role]]
Area = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels
PANEL_KINDS: tuple[PanelKind, ...] = get_args(PanelKind)

_PAPER: RGB = (252, 252, 250)
_INK: RGB = (24, 24, 30)
_FRAME: RGB = (120, 122, 128)
_GRID: RGB = (206, 208, 212)
_FAINT: RGB = (232, 233, 236)
_ROW: RGB = (232, 236, 242)
_FINE = 3
_CIRCLE = 200  # directions; two for each percent


def has_axis(panel: Panel) -> bool:
    """Whether values are read off an axis of 0..100, as in bars and lines of nothing but tens."""
    return panel.kind in ("bar", "line") and all(value % 10 == 0 for value in panel.values)


def labels_inside(shares: Sequence[int]) -> bool:
    """Whether every slice of a pie has room for its label and number; otherwise a key stands beside it."""
    return min(shares) >= 15


def draw_panel(image: Image.Image, panel: Panel) -> Drawn:
    """Draw `panel` on an RGB image in place.

    Returns:
        Every string with its box in the image's unit square and its role: "title", "label", "value" or
        "axis". A receipt's last two are "TOTAL" (label) and the sum (value).

    Raises:
        UserError: unknown kind or colour, or labels, values and colours that do not fit together.
    """
    _check(panel)
    sheet = _Sheet(image)
    area = to_pixels(panel.box, *image.size)
    edge = max(1, min(area[2] - area[0], area[3] - area[1]) // 120)
    image.paste(_FRAME, area)
    inner = _inset(area, edge)
    image.paste(_PAPER, inner)
    _PAINTERS[panel.kind](sheet, panel, _inset(inner, edge))
    return sheet.drawn


def _check(panel: Panel) -> None:
    if panel.kind not in PANEL_KINDS:
        raise unknown("panel kind", panel.kind, PANEL_KINDS)
    if not len(panel.labels) == len(panel.values) == len(panel.colours) >= 1:
        raise UserError(
            f"a panel needs as many values and colours as labels: it has {len(panel.labels)} labels, "
            f"{len(panel.values)} values, {len(panel.colours)} colours."
        )
    for colour in panel.colours:
        if colour not in COLOURS:
            raise unknown("panel colour", colour, COLOURS)
    if min(panel.values) < 0 or (panel.kind == "pie" and (sum(panel.values) != 100 or min(panel.values) < 1)):
        raise UserError(f"values must not be negative, and a pie's are percent with sum 100, not {panel.values}.")


def _inset(area: Area, by: int) -> Area:
    x0, y0, x1, y1 = area
    return x0 + by, y0 + by, max(x0 + by + 1, x1 - by), max(y0 + by + 1, y1 - by)


def _cap(size: int) -> int:
    """Height of capitals in pixels."""
    return max(1, (73 * size + 50) // 100)


def _common_size(texts: Sequence[str], width: float, cap: float, face: Face = "bold") -> int:
    """The largest font size at which no text is wider than `width` and no capital higher than `cap`."""
    widest = max(texts, key=lambda text: text_layout(text, 64, face)[1])
    size = min(fit_size(widest, width, 10_000, face), int(cap * 100 / 73))
    return max(1, size)


class _Sheet:
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
        ink: RGB = _INK,
        face: Face = "bold",
    ) -> None:
        """Write with capitals centred on height `middle`.

        `at` is the line's left end (anchor 0), centre (0.5) or right end (1).
        """
        baseline = int(middle + _cap(size) / 2 + 0.5)
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
        size = _common_size([panel.title], (x1 - x0) * 0.9, tall * 0.62)
        self.write(panel.title, "title", (x0 + x1) / 2, y0 + tall * 0.55, size)
        return x0, y0 + tall, x1, y1


def _plot(sheet: _Sheet, panel: Panel, area: Area) -> tuple[Area, list[int], int]:
    """Title, labels, axis and base line of a bar or line chart.

    Returns the area between the base line and the highest value, the slots' edges (n + 1 pixel columns), and
    the font size for values.
    """
    x0, y0, x1, y1 = sheet.title(panel, area)
    tall, count = y1 - y0, len(panel.labels)
    axis = has_axis(panel)
    pad = max(1, (x1 - x0) // 50)
    size_axis = _common_size(["100"], (x1 - x0) * 0.15, tall * 0.075) if axis else 0
    left = x0 + pad + (text_layout("100", size_axis)[1] + pad if axis else 0)
    slots = [left + (x1 - pad - left) * i // count for i in range(count + 1)]
    slot = (x1 - pad - left) / count
    size = _common_size(panel.labels, slot * 0.92 - 1.5, tall * 0.10)
    base = y1 - max(2, _cap(size) * 17 // 10)
    for i, label in enumerate(panel.labels):
        sheet.write(label, "label", (slots[i] + slots[i + 1]) / 2, (base + y1) / 2 + 0.5, size)
    written = [str(value) for value in panel.values]
    size_value = size_axis if axis else _common_size(written, slot * 0.92, tall * 0.10)
    room = _cap(size_value) // 2 + 1 if axis else _cap(size_value) + _gap(tall) + 1
    if panel.kind == "line":
        room += _radius(slot, tall)
    top = min(base - 1, y0 + room + _gap(tall))
    thick = max(1, tall // 110)
    if axis:
        for level in range(10, 101, 10):
            y = base - _height(level, 100, base - top)
            sheet.fill(_FAINT if level % 20 else _GRID, left, y, x1 - pad, y + thick)
        step = 20 if (base - top) / 5 >= _cap(size_axis) * 1.5 else 50
        for level in range(0, 101, step):
            y = base - _height(level, 100, base - top)
            sheet.write(str(level), "axis", left - pad, y + thick / 2, size_axis, anchor=1)
    sheet.fill(_FRAME, left, base, x1 - pad, base + thick)
    return (left, top, x1 - pad, base), slots, size_value


def _height(value: int, scale: int, pixels: int) -> int:
    """Height in pixels of a value, rounded to the nearest."""
    return (2 * value * pixels + scale) // (2 * scale)


def _bar(sheet: _Sheet, panel: Panel, area: Area) -> None:
    (_, top, _, base), slots, size = _plot(sheet, panel, area)
    axis = has_axis(panel)
    scale = 100 if axis else max(1, *panel.values)
    gap_above = _gap(base - top)
    for i, (value, colour) in enumerate(zip(panel.values, panel.colours, strict=True)):
        gap = max(1, (slots[i + 1] - slots[i]) * 14 // 100)
        y = base - _height(value, scale, base - top)
        sheet.fill(COLOURS[colour], slots[i] + gap, y, slots[i + 1] - gap, base)
        if not axis:
            middle = y - gap_above - _cap(size) / 2
            sheet.write(str(value), "value", (slots[i] + slots[i + 1]) / 2, middle, size)


def _radius(slot: float, tall: float) -> int:
    """Of a line's markers, in pixels."""
    return max(2, int(min(slot / 10, tall / 30)))


def _gap(tall: float) -> int:
    """Between a mark and its number, in pixels."""
    return max(2, int(tall / 55))


def _line(sheet: _Sheet, panel: Panel, area: Area) -> None:
    (left, top, right, base), slots, size = _plot(sheet, panel, area)
    axis = has_axis(panel)
    scale = 100 if axis else max(1, *panel.values)
    radius = _radius((right - left) / len(panel.values), base - top)
    away = radius + _gap(base - top)
    low = base if axis else base - _cap(size) - away - 1  # room for numbers under the lowest points
    points = [((slots[i] + slots[i + 1]) / 2, low - _height(value, scale, low - top)) for i, value in enumerate(panel.values)]
    colour = COLOURS[panel.colours[0]]
    spots = [] if axis else _number_spots(points, [str(value) for value in panel.values], size, away)
    margin = radius + 2
    corner = (left - margin, top - margin)
    mask = Image.new("L", ((right - left + 2 * margin) * _FINE, (base - top + 2 * margin) * _FINE), 0)
    pen = ImageDraw.Draw(mask)
    fine = [(int((x - corner[0]) * _FINE), int((y - corner[1]) * _FINE)) for x, y in points]
    pen.line(fine, fill=255, width=max(3, 2 * radius))
    r = radius * _FINE
    for u, v in fine:
        pen.ellipse((u - r, v - r, u + r, v + r), fill=255)
    sheet.image.paste(colour, corner, mask.reduce(_FINE))
    for (x, y), value in zip(spots, panel.values, strict=False):
        half = text_layout(str(value), size)[1] / 2
        sheet.fill(_PAPER, int(x - half), int(y - _cap(size) / 2), int(x + half + 1), int(y + _cap(size) / 2 + 1))
    for (x, y), value in zip(spots, panel.values, strict=False):
        sheet.write(str(value), "value", x, y, size)


def _number_spots(points: list[tuple[float, int]], texts: list[str], size: int, distance: int) -> list[tuple[float, float]]:
    """Centres for numbers above or below their points, on the side where the line is farther."""
    away = distance + _cap(size) / 2
    spots = []
    for i, (x, y) in enumerate(points):
        half = text_layout(texts[i], size)[1] / 2
        near = []  # height of the line over the number's two ends
        for j, end in ((i - 1, x - half), (i + 1, x + half)):
            if 0 <= j < len(points) and points[j][0] != x:
                xj, yj = points[j]
                near.append(y + (yj - y) * (end - x) / (xj - x))
        above = min((abs(line - (y - away)) for line in near), default=0.0)
        below = min((abs(line - (y + away)) for line in near), default=0.0)
        spots.append((x, y - away if above >= below else y + away))
    return spots


@cache
def _directions() -> tuple[tuple[int, int], ...]:
    """Points of a circle of radius 2**16, clockwise from the top; whole numbers are the same everywhere."""
    turns = [2 * math.pi * i / _CIRCLE for i in range(_CIRCLE)]
    return tuple((round(65536 * math.sin(turn)), round(-65536 * math.cos(turn))) for turn in turns)


def _on_circle(centre: float, vertical: float, radius: float, step: int) -> tuple[float, float]:
    dx, dy = _directions()[step % _CIRCLE]
    return centre + radius * dx / 65536, vertical + radius * dy / 65536


def _pie(sheet: _Sheet, panel: Panel, area: Area) -> None:
    x0, y0, x1, y1 = sheet.title(panel, area)
    wide, tall = x1 - x0, y1 - y0
    inside = labels_inside(panel.values)
    share = 1.0 if inside else 0.43
    across = max(4, int(min(wide * share, tall) * 0.96))
    left, top = x0 + max(1, int((wide * share - across) / 2)), y0 + (tall - across) // 2
    disc = Image.new("RGB", (across * _FINE, across * _FINE), _PAPER)
    pen = ImageDraw.Draw(disc)
    middle = across * _FINE // 2
    start = 0
    rays = []
    for value, colour in zip(panel.values, panel.colours, strict=True):
        steps = range(start, start + 2 * value + 1)
        rim = [_on_circle(middle, middle, middle - 1, step) for step in steps]
        pen.polygon([(middle, middle), *rim], fill=COLOURS[colour])
        rays.append(rim[0])
        start += 2 * value
    for ray in rays:
        pen.line([(middle, middle), ray], fill=_PAPER, width=max(2, across * _FINE // 90))
    sheet.image.paste(disc.reduce(_FINE), (left, top))
    if inside:
        _slice_texts(sheet, panel, left + across / 2, top + across / 2, across / 2)
    else:
        _legend(sheet, panel, (x0 + int(wide * share), y0, x1, y1))


def _slice_texts(sheet: _Sheet, panel: Panel, x: float, y: float, radius: float) -> None:
    """Label and number in two lines within each slice."""
    rows = [*panel.labels, *(str(value) for value in panel.values)]
    narrow = min(panel.values)
    room = 2 * 0.52 * radius * _directions()[min(narrow, 50)][0] / 65536  # chord at the inner line
    size = _common_size(rows, min(room * 0.92, radius * 0.72), radius * 0.18)
    start = 0
    for label, value, colour in zip(panel.labels, panel.values, panel.colours, strict=True):
        cx, cy = _on_circle(x, y, radius * 0.62, start + value)
        ink = contrast_ink(COLOURS[colour])
        sheet.write(label, "label", cx, cy - _cap(size) * 0.68, size, ink=ink)
        sheet.write(str(value), "value", cx, cy + _cap(size) * 0.68, size, ink=ink)
        start += 2 * value


def _legend(sheet: _Sheet, panel: Panel, area: Area) -> None:
    """A key at the right: patch, label, number in one row for each slice."""
    x0, y0, x1, y1 = area
    count = len(panel.labels)
    wide = x1 - x0
    row = min((y1 - y0) / count, (y1 - y0) / 4)
    top = (y0 + y1 - row * count) / 2
    widest = max(panel.labels, key=lambda label: text_layout(label, 64)[1])
    size = _common_size([widest + "000"], wide * 0.84, row * 0.6)
    patch = max(2, min(int(wide * 0.11), _cap(size) + 1))
    for i, (label, value, colour) in enumerate(zip(panel.labels, panel.values, panel.colours, strict=True)):
        middle = top + row * (i + 0.5)
        corner = int(x0 + wide * 0.03), int(middle - patch / 2 + 0.5)
        sheet.fill(COLOURS[colour], corner[0], corner[1], corner[0] + patch, corner[1] + patch)
        sheet.write(label, "label", corner[0] + patch + max(1, wide // 32), middle, size, anchor=0)
        sheet.write(str(value), "value", x1 - max(1, wide // 60), middle, size, anchor=1)


def _table(sheet: _Sheet, panel: Panel, area: Area) -> None:
    x0, y0, x1, y1 = area
    count = len(panel.labels)
    rows = count + bool(panel.title)
    edges = [y0 + (y1 - y0) * i // rows for i in range(rows + 1)]
    split = x0 + (x1 - x0) * 56 // 100
    tall = (y1 - y0) / rows
    thick = max(1, (y1 - y0) // 120)
    accent = COLOURS[panel.colours[0]]
    values = [str(value) for value in panel.values]
    size = min(
        _common_size(panel.labels, (split - x0) * 0.86, tall * 0.56),
        _common_size(values, (x1 - split) * 0.8, tall * 0.56),
    )
    first = 0
    if panel.title:
        first = 1
        sheet.fill(accent, x0, edges[0], x1, edges[1])
        head = _common_size([panel.title], (x1 - x0) * 0.9, tall * 0.56)
        sheet.write(panel.title, "title", (x0 + x1) / 2, (edges[0] + edges[1]) / 2, head, ink=contrast_ink(accent))
    for i, (label, value) in enumerate(zip(panel.labels, values, strict=True)):
        top, bottom = edges[first + i], edges[first + i + 1]
        if i % 2 == 0:
            sheet.fill(_ROW, x0, top, x1, bottom)
        sheet.fill(_GRID, x0, bottom - thick if i + 1 < count else bottom, x1, bottom)
        middle = (top + bottom) / 2
        sheet.write(label, "label", x0 + (split - x0) * 0.07, middle, size, anchor=0)
        sheet.write(value, "value", x1 - (x1 - split) * 0.1, middle, size, anchor=1)
    sheet.fill(_GRID, split, edges[first], split + thick, y1)


def _receipt(sheet: _Sheet, panel: Panel, area: Area) -> None:
    x0, y0, x1, y1 = area
    lines = [*zip(panel.labels, map(str, panel.values), strict=True), ("TOTAL", str(sum(panel.values)))]
    row = (y1 - y0) / (len(lines) + bool(panel.title) + 0.8)
    pad = max(1, (x1 - x0) // 20)
    columns = max(len(label) for label, _ in lines) + 2 + max(len(value) for _, value in lines)
    size = _common_size(["0" * columns, panel.title], x1 - x0 - 2 * pad, row * 0.62, "mono")
    middle = y0 + row * 0.65
    if panel.title:
        sheet.write(panel.title, "title", (x0 + x1) / 2, middle, size, face="mono")
        middle += row
    for i, (label, value) in enumerate(lines):
        if i + 1 == len(lines):
            thick = max(1, (y1 - y0) // 110)
            for x in range(x0 + pad, x1 - pad, 4 * thick):
                dash = int(middle - row * 0.4)
                sheet.fill(_INK, x, dash, min(x + 2 * thick, x1 - pad), dash + thick)
            middle += row * 0.3
        sheet.write(label, "label", x0 + pad, middle, size, anchor=0, face="mono")
        sheet.write(value, "value", x1 - pad, middle, size, anchor=1, face="mono")
        middle += row


_PAINTERS: dict[PanelKind, Callable[[_Sheet, Panel, Area], None]] = {
    "bar": _bar,
    "line": _line,
    "pie": _pie,
    "table": _table,
    "receipt": _receipt,
}
