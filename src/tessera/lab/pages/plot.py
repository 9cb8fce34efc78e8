"""Dots with intervals: the arms of an experiment, its effects with the margin and the paper's number. Shapes are SVG, words HTML.

Each row is an SVG of its own that stretches with the page, 100 wide and 12 high; all rows of a panel share one axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tessera.lab.pages.text import number

_WIDE = 1000.0
"""Ratio of the largest to the smallest value from which on the axis is logarithmic."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A mean, or an effect, with its interval (None: it has none).

    name, note  what it is; written: its number; ends: its interval in words
    css         how it looks: treatment, baseline, control, other; shown, refuted, open
    mark        a number that the row is held against, such as the paper's; None: none
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""
    written: str = ""
    ends: str = ""
    css: str = "other"
    mark: float | None = None

    def numbers(self) -> list[float]:
        """All that the axis has to hold."""
        found = [x for x in (self.value, self.low, self.high, self.mark) if x is not None]
        return [x for x in found if math.isfinite(x)]


@dataclass(frozen=True, slots=True)
class Axis:
    """low, high: its ends, low < high; in a logarithmic one both are above zero."""

    low: float
    high: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where a value lies, 0 to 100; what is outside lies at the nearer end."""
        inside = min(max(value, self.low), self.high) + 0.0  # without the sign of a negative zero
        if self.logarithmic:
            return 100 * math.log(inside / self.low) / math.log(self.high / self.low) + 0.0
        return 100 * (inside - self.low) / (self.high - self.low)

    @property
    def zero(self) -> float | None:
        """Where zero lies, None if it is not on the axis."""
        return self.at(0.0) if self.low <= 0 <= self.high and not self.logarithmic else None


@dataclass(frozen=True, slots=True)
class DrawnRow:
    """A row as a page shows it."""

    dot: Dot
    svg: Markup


@dataclass(frozen=True, slots=True, kw_only=True)
class PlotPanel:
    """Rows on one axis. `key`: what the mark is, "" without one; `said`: all of it in words, for those who cannot see it."""

    title: str
    rows: tuple[DrawnRow, ...]
    axis: Axis
    key: str = ""
    hint: str = ""

    @property
    def said(self) -> str:
        """The rows in one sentence."""
        rows = "; ".join(f"{r.dot.name} {r.dot.written}" + (f", {r.dot.ends}" if r.dot.ends else "") for r in self.rows)
        return f"{self.title}: {rows}"

    @property
    def ticks(self) -> list[tuple[str, float]]:
        """(words, place) of what is written under the axis: its ends, and zero where there is room."""
        zero = self.axis.zero
        middle = [("0", zero)] if zero is not None and 12 < zero < 88 else []
        return [(number(self.axis.low), 0.0), *middle, (number(self.axis.high), 100.0)]


def panel(title: str, dots: Sequence[Dot], *, zero: bool = False, key: str = "", hint: str = "") -> PlotPanel | None:
    """Rows on an axis that holds them all; `zero`: it holds zero too. None if there is nothing that can be drawn."""
    drawable = [dot for dot in dots if math.isfinite(dot.value)]
    if not drawable:
        return None
    axis = axis_of([x for dot in drawable for x in dot.numbers()], zero=zero)
    return PlotPanel(title=title, rows=tuple(DrawnRow(dot, svg(dot, axis)) for dot in drawable), axis=axis, key=key, hint=hint)


def alike(dots: Iterable[Dot]) -> list[list[Dot]]:
    """Effects in groups that can share an axis: none is too small to be seen beside the others."""
    groups: list[list[Dot]] = []
    for dot in dots:
        size = _size(dot)
        for group in groups:
            known = max(map(_size, group))
            if known / 8 <= size <= known * 3 or not known or not size:
                group.append(dot)
                break
        else:
            groups.append([dot])
    return groups


def _size(dot: Dot) -> float:
    return max(map(abs, dot.numbers()), default=0.0)


def axis_of(values: Sequence[float], *, zero: bool = False) -> Axis:
    """An axis with round ends, a little wider than what it holds.

    Zero is on it if it is asked for, or nearer than the values are apart. Values above zero that are a thousand times apart lie
    on a logarithmic one, of whole decades. Shares stay within 0 to 1.
    """
    low, high = min(values), max(values)
    if not zero and low > 0 and high / _WIDE > low:
        return Axis(10.0 ** math.floor(math.log10(low)), 10.0 ** min(math.ceil(math.log10(high)), 308), True)
    share = low >= 0 and high <= 1
    if zero or (low > 0 and low <= high - low) or (high < 0 and -high <= high - low):
        low, high = min(low, 0.0), max(high, 0.0)
    size = max(abs(low), abs(high))
    apart = (high - low) / 2
    if apart <= size * 1e-9:
        apart = size * 0.1 or 0.5
    pad = 0.12 * apart
    step = _step(apart / 2)
    left = low if low == 0 else math.floor((low - pad) / step) * step
    right = high if high == 0 else math.ceil((high + pad) / step) * step
    if left == right:
        left, right = left - step, right + step
    if share and not zero:
        left, right = max(left, 0.0), min(right, 1.0)
        if left == right:
            left, right = (0.0, step) if right == 0 else (1.0 - step, 1.0)
    return Axis(_clean(left, step), _clean(right, step))


def _step(size: float) -> float:
    """The nearest of 1, 2, 5 x 10^n at or below."""
    unit = 10.0 ** math.floor(math.log10(size)) if size > 1e-300 else 1e-300
    return max(m * unit for m in (1, 2, 5) if m == 1 or m * unit <= size * 1.0000001)


def _clean(value: float, step: float) -> float:
    """Without the dust of floating-point multiples."""
    digits = max(0, 2 - math.floor(math.log10(step)))
    return round(value, digits) if digits < 300 else value


def svg(dot: Dot, axis: Axis) -> Markup:
    """One row: the zero line, what it is held against, the interval, the dot."""
    shapes = []
    if axis.zero is not None:
        shapes.append(f'<path class="zero" d="M{axis.zero:.2f} 0V12"/>')
    if dot.mark is not None and math.isfinite(dot.mark):
        shapes.append(f'<path class="mark" d="M{axis.at(dot.mark):.2f} 0V12"/>')
    place = axis.at(dot.value)
    if dot.low is not None and dot.high is not None and not (math.isnan(dot.low) or math.isnan(dot.high)):
        a, b = axis.at(dot.low), axis.at(dot.high)
        caps = "".join(f"M{x:.2f} 3.5V8.5" for x, end in ((a, dot.low), (b, dot.high)) if math.isfinite(end))
        shapes.append(f'<path class="whisk" d="M{a:.2f} 6H{b:.2f}{caps}"/>')
    shapes.append(f'<path class="dot" d="M{place:.2f} 6h0"/>')
    if dot.css == "control":
        shapes.append(f'<path class="hole" d="M{place:.2f} 6h0"/>')
    drawn = "".join(shapes)
    return Markup(f'<svg viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">{drawn}</svg>')
