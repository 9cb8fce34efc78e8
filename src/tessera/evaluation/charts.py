"""Charts of the report that scale with the page: shapes are SVG, every word is HTML text in the page's own size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from markupsafe import Markup

from tessera.evaluation.pages import piece, share
from tessera.evaluation.result import Result

_POINTS = 360
"""Points of a curve; more cannot be told apart on a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """A curve: `points` (x, y) in order of x; `css` names its style (raw, main, second)."""

    points: Sequence[tuple[float, float]]
    css: str = "main"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A vertical line at `x` with words at its top."""

    x: float
    text: str


def line_chart(
    series: Sequence[Series], *, about: str, marks: Sequence[Mark] = (), log: bool = False, percent: bool = False
) -> Markup:
    """Curves over training steps. log: logarithmic y (positive values); percent: y is a share, drawn from 0 to 1.

    about: what is shown, for people who do not see it.
    """
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in s.points if not log or y > 0]
    if not xs or not ys:
        return Markup()
    left, right = min(xs), max(max(xs), min(xs) + 1)
    ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if percent else _ticks(min(ys), max(ys), log)
    low, high = (0.0, 1.0) if percent else (min(ticks[0], min(ys)), max(ticks[-1], max(ys)))
    down = (lambda v: math.log(v)) if log else (lambda v: v)

    def at(x: float, y: float) -> tuple[float, float]:
        share = (down(y) - down(low)) / max(1e-12, down(high) - down(low))
        return 1000 * (x - left) / (right - left), 300 * (1 - share)

    return piece(
        "curves.html",
        about=about,
        grid=[(at(left, t)[1], _number(t, percent)) for t in ticks],
        stems=[at(m.x, high)[0] for m in marks if m.x > left],
        curves=[(s.css, _path([at(x, y) for x, y in _thin(s.points, log)])) for s in series],
        steps=[(100 * (t - left) / (right - left), f"{t:,.0f}") for t in _ticks(left, right, False) if left <= t <= right],
        heads=[(at(m.x, high)[0] / 10, m.text) for m in marks],
    )


def smooth(points: Sequence[tuple[float, float]], share: float = 0.04) -> list[tuple[float, float]]:
    """The mean of about `share` of the points around each one, as many before as after it, so that a steep start does not lag.

    At the end, where nothing comes after, those before it are taken alone: a single point would show its noise.
    """
    sums = list(accumulate((y for _, y in points), initial=0.0))
    reach, last = round(share * len(points) / 2), len(points) - 1
    found = []
    for i, (x, _) in enumerate(points):
        before, after = min(reach, i), min(reach, i, last - i)
        found.append((x, (sums[i + after + 1] - sums[i - before]) / (after + before + 1)))
    return found


def bars(result: Result) -> Markup:
    """A row per question type, best first: the accuracy with its interval, the blind bar below it, the mark of chance."""
    rows = sorted(result.types.items(), key=lambda pair: -pair[1].accuracy)
    return piece("bars.html", rows=rows)


def _number(value: float, percent: bool) -> str:
    return share(value) if percent else f"{value:g}"


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _thin(points: Sequence[tuple[float, float]], log: bool) -> list[tuple[float, float]]:
    """At most about `_POINTS` of the points: of each stretch the lowest and the highest, so that no spike is lost."""
    kept = [p for p in points if math.isfinite(p[1]) and (not log or p[1] > 0)]
    if len(kept) <= _POINTS:
        return kept
    size = -(-len(kept) // (_POINTS // 2))
    found = []
    for start in range(0, len(kept), size):
        part = kept[start : start + size]
        found += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
    return found


def _ticks(low: float, high: float, log: bool) -> list[float]:
    """About five round numbers from at most `low` to at least `high` (steps of 1, 2 or 5)."""
    if log:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        every = [m * 10.0**d for d in decades for m in (1, 2, 5)]
        inside = [t for t in every if low / 1.05 <= t <= high * 1.05]
        return inside or [low, high]
    rough = (high - low) / 5 or 1.0
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
    return [step * i for i in range(math.floor(low / step), math.ceil(high / step) + 1)]
