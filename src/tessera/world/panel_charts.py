"""Bars, lines and pies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

from PIL import Image, ImageDraw

from tessera.world.backgrounds import COLOURS, contrast_ink
from tessera.world.panel_sheet import FRAME, GRID, PAPER, Area, Sheet, cap, common_size
from tessera.world.scene import Panel
from tessera.world.text import RGB, text_layout

_FAINT: RGB = (232, 233, 236)
_FINE = 3
_CIRCLE = 200  # directions; two for each percent


def has_axis(panel: Panel) -> bool:
    """Whether values are read off an axis of 0..100, as in bars and lines of nothing but tens."""
    return panel.kind in ("bar", "line") and all(value % 10 == 0 for value in panel.values)


def labels_inside(shares: Sequence[int]) -> bool:
    """Whether every slice of a pie has room for its label and number; otherwise a key stands beside it."""
    return min(shares) >= 15


def _plot(sheet: Sheet, panel: Panel, area: Area) -> tuple[Area, list[int], int]:
    """Title, labels, axis and base line of a bar or line chart.

    Returns the area between the base line and the highest value, the slots' edges (n + 1 pixel columns), and
    the font size for values.
    """
    x0, y0, x1, y1 = sheet.title(panel, area)
    tall, count = y1 - y0, len(panel.labels)
    axis = has_axis(panel)
    pad = max(1, (x1 - x0) // 50)
    size_axis = common_size(["100"], (x1 - x0) * 0.15, tall * 0.075) if axis else 0
    left = x0 + pad + (text_layout("100", size_axis)[1] + pad if axis else 0)
    slots = [left + (x1 - pad - left) * i // count for i in range(count + 1)]
    slot = (x1 - pad - left) / count
    size = common_size(panel.labels, slot * 0.92 - 1.5, tall * 0.10)
    base = y1 - max(2, cap(size) * 17 // 10)
    for i, label in enumerate(panel.labels):
        sheet.write(label, "label", (slots[i] + slots[i + 1]) / 2, (base + y1) / 2 + 0.5, size)
    written = [str(value) for value in panel.values]
    size_value = size_axis if axis else common_size(written, slot * 0.92, tall * 0.10)
    room = cap(size_value) // 2 + 1 if axis else cap(size_value) + _gap(tall) + 1
    if panel.kind == "line":
        room += _radius(slot, tall)
    top = min(base - 1, y0 + room + _gap(tall))
    thick = max(1, tall // 110)
    if axis:
        for level in range(10, 101, 10):
            y = base - _height(level, 100, base - top)
            sheet.fill(_FAINT if level % 20 else GRID, left, y, x1 - pad, y + thick)
        step = 20 if (base - top) / 5 >= cap(size_axis) * 1.5 else 50
        for level in range(0, 101, step):
            y = base - _height(level, 100, base - top)
            sheet.write(str(level), "axis", left - pad, y + thick / 2, size_axis, anchor=1)
    sheet.fill(FRAME, left, base, x1 - pad, base + thick)
    return (left, top, x1 - pad, base), slots, size_value


def _height(value: int, scale: int, pixels: int) -> int:
    """Height in pixels of a value, rounded to the nearest."""
    return (2 * value * pixels + scale) // (2 * scale)


def bar(sheet: Sheet, panel: Panel, area: Area) -> None:
    """A bar for each value, the number on top of it unless there is an axis."""
    (_, top, _, base), slots, size = _plot(sheet, panel, area)
    axis = has_axis(panel)
    scale = 100 if axis else max(1, *panel.values)
    gap_above = _gap(base - top)
    for i, (value, colour) in enumerate(zip(panel.values, panel.colours, strict=True)):
        gap = max(1, (slots[i + 1] - slots[i]) * 14 // 100)
        y = base - _height(value, scale, base - top)
        sheet.fill(COLOURS[colour], slots[i] + gap, y, slots[i + 1] - gap, base)
        if not axis:
            middle = y - gap_above - cap(size) / 2
            sheet.write(str(value), "value", (slots[i] + slots[i + 1]) / 2, middle, size)


def _radius(slot: float, tall: float) -> int:
    """Of a line's markers, in pixels."""
    return max(2, int(min(slot / 10, tall / 30)))


def _gap(tall: float) -> int:
    """Between a mark and its number, in pixels."""
    return max(2, int(tall / 55))


def line(sheet: Sheet, panel: Panel, area: Area) -> None:
    """A line through marked points, the numbers beside them unless there is an axis."""
    (left, top, right, base), slots, size = _plot(sheet, panel, area)
    axis = has_axis(panel)
    scale = 100 if axis else max(1, *panel.values)
    radius = _radius((right - left) / len(panel.values), base - top)
    away = radius + _gap(base - top)
    low = base if axis else base - cap(size) - away - 1  # room for numbers under the lowest points
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
        sheet.fill(PAPER, int(x - half), int(y - cap(size) / 2), int(x + half + 1), int(y + cap(size) / 2 + 1))
    for (x, y), value in zip(spots, panel.values, strict=False):
        sheet.write(str(value), "value", x, y, size)


def _number_spots(points: list[tuple[float, int]], texts: list[str], size: int, distance: int) -> list[tuple[float, float]]:
    """Centres for numbers above or below their points, on the side where the line is farther."""
    away = distance + cap(size) / 2
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


def pie(sheet: Sheet, panel: Panel, area: Area) -> None:
    """Slices in percent, told in themselves or by a key."""
    x0, y0, x1, y1 = sheet.title(panel, area)
    wide, tall = x1 - x0, y1 - y0
    inside = labels_inside(panel.values)
    share = 1.0 if inside else 0.43
    across = max(4, int(min(wide * share, tall) * 0.96))
    left, top = x0 + max(1, int((wide * share - across) / 2)), y0 + (tall - across) // 2
    disc = Image.new("RGB", (across * _FINE, across * _FINE), PAPER)
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
        pen.line([(middle, middle), ray], fill=PAPER, width=max(2, across * _FINE // 90))
    sheet.image.paste(disc.reduce(_FINE), (left, top))
    if inside:
        _slice_texts(sheet, panel, left + across / 2, top + across / 2, across / 2)
    else:
        _legend(sheet, panel, (x0 + int(wide * share), y0, x1, y1))


def _slice_texts(sheet: Sheet, panel: Panel, x: float, y: float, radius: float) -> None:
    """Label and number in two lines within each slice."""
    rows = [*panel.labels, *(str(value) for value in panel.values)]
    narrow = min(panel.values)
    room = 2 * 0.52 * radius * _directions()[min(narrow, 50)][0] / 65536  # chord at the inner line
    size = common_size(rows, min(room * 0.92, radius * 0.72), radius * 0.18)
    start = 0
    for label, value, colour in zip(panel.labels, panel.values, panel.colours, strict=True):
        cx, cy = _on_circle(x, y, radius * 0.62, start + value)
        ink = contrast_ink(COLOURS[colour])
        sheet.write(label, "label", cx, cy - cap(size) * 0.68, size, ink=ink)
        sheet.write(str(value), "value", cx, cy + cap(size) * 0.68, size, ink=ink)
        start += 2 * value


def _legend(sheet: Sheet, panel: Panel, area: Area) -> None:
    """A key at the right: patch, label, number in one row for each slice."""
    x0, y0, x1, y1 = area
    count = len(panel.labels)
    wide = x1 - x0
    row = min((y1 - y0) / count, (y1 - y0) / 4)
    top = (y0 + y1 - row * count) / 2
    widest = max(panel.labels, key=lambda label: text_layout(label, 64)[1])
    size = common_size([widest + "000"], wide * 0.84, row * 0.6)
    patch = max(2, min(int(wide * 0.11), cap(size) + 1))
    for i, (label, value, colour) in enumerate(zip(panel.labels, panel.values, panel.colours, strict=True)):
        middle = top + row * (i + 0.5)
        corner = int(x0 + wide * 0.03), int(middle - patch / 2 + 0.5)
        sheet.fill(COLOURS[colour], corner[0], corner[1], corner[0] + patch, corner[1] + patch)
        sheet.write(label, "label", corner[0] + patch + max(1, wide // 32), middle, size, anchor=0)
        sheet.write(str(value), "value", x1 - max(1, wide // 60), middle, size, anchor=1)
