"""Accuracy over a cost as a drawing: dots with their intervals, names where nothing else is written, the frontier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tessera.evaluation.pages import share
from tessera.lab.compare.comparison import Contender
from tessera.lab.compare.table import label, percent


@dataclass(frozen=True, slots=True, kw_only=True)
class Name:
    """A name beside its dot; `css` says on which side, and whether it stands out."""

    text: str
    css: str
    x: float
    y: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ContenderDot:
    """A contender at (x, y), its interval from `low` to `high`."""

    css: str
    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Scatter:
    """Accuracy over a cost in a drawing of 1000 x 440 units, y downwards.

    about: for people who do not see it; grid, steps: (place, words) of the lines across and of the marks below; front: the path
    of the frontier, "" for none.
    """

    title: str
    about: str
    grid: list[tuple[float, str]]
    steps: list[tuple[float, str]]
    front: str
    dots: list[ContenderDot]
    names: list[Name]


def scatter(rows: Sequence[Contender], cost: Callable[[Contender], float], title: str) -> Scatter:
    """Accuracy over a cost, one dot a contender; the axis of costs begins at 0 unless all are much alike."""
    costs = [cost(row) for row in rows]
    best = [
        row for row in rows if not any(cost(o) <= cost(row) and o.accuracy >= row.accuracy and _other(o, row, cost) for o in rows)
    ]
    width = max(costs) - min(costs)
    left = 0.0 if min(costs) < 0.6 * max(costs) else max(0.0, min(costs) - 0.35 * width - 0.02 * max(costs))
    right = max(costs) + 0.14 * (max(costs) - left) or 1.0
    top, bottom = max(row.high for row in rows), min(row.low for row in rows)
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25) if (top - bottom) / s <= 7)
    low, high = math.floor(bottom / step) * step, math.ceil(top / step) * step
    high = max(high, low + step)
    ticks = [low + step * k for k in range(round((high - low) / step) + 1)]

    def at(x: float, y: float) -> tuple[float, float]:
        return 1000 * (x - left) / (right - left), 440 * (high - y) / (high - low)

    dots = []
    for row in rows:
        x, y = at(cost(row), row.accuracy)
        css = "plain" if row.how == "bare" else "best" if row in best else ""
        dots.append(ContenderDot(css=css, x=x, y=y, low=at(left, row.low)[1], high=at(left, row.high)[1]))
    return Scatter(
        title=title,
        about="; ".join(f"{label(row)}: {percent(row.accuracy)} % right, {cost(row):.3g} {title}" for row in rows),
        grid=[(at(left, tick)[1], share(tick)) for tick in ticks],
        steps=[(at(tick, 0)[0], f"{tick:g}") for tick in _round_ticks(left, right)],
        front=_front(sorted((cost(row), row.accuracy) for row in best), at),
        dots=dots,
        names=_names([(label(row), *at(cost(row), row.accuracy), row in best or row.how == "bare") for row in rows]),
    )


def _front(points: Sequence[tuple[float, float]], at: Callable[[float, float], tuple[float, float]]) -> str:
    """The path of the frontier from the cheapest to the dearest."""
    if len(points) < 2:
        return ""
    path, best = "", -1.0
    for x, y in points:
        if y <= best:
            continue
        a, b = at(x, y)
        path += f"M{a:.1f} {b:.1f}" if not path else f"H{a:.1f}V{b:.1f}"
        best = y
    return path


def _names(named: Sequence[tuple[str, float, float, bool]]) -> list[Name]:
    """Names beside their dots, where nothing else is written: to the right, to the left, then further down and up."""
    taken: list[tuple[float, float, float, float]] = [(x - 8, y - 8, x + 8, y + 8) for _, x, y, _ in named]
    found = []
    for text, x, y, good in sorted(named, key=lambda entry: -entry[3]):
        wide = 8.2 * len(text)
        places = [(side, shift) for shift in (0, 20, -20, 40, -40, 60, -60) for side in ("", "left")]
        for side, shift in places:
            left = x + 12 if not side else x - 12 - wide
            box = (left, y + shift - 9, left + wide, y + shift + 9)
            free = all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for t in taken)
            if free and left >= 0 and left + wide <= 1040 and 0 <= y + shift <= 440:
                break
        else:
            side, shift, box = "", 0, (x + 12, y - 9, x + 12 + wide, y + 9)
        taken.append(box)
        css = " ".join(word for word in ("name", side, "good" if good else "") if word)
        found.append(Name(text=text, css=css, x=x + 12 if not side else x - 12, y=y + shift))
    return found


def _round_ticks(left: float, right: float) -> list[float]:
    rough = (right - left) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
    return [round(step * k, 12) for k in range(math.ceil(left / step), int(right / step) + 1)]


def _other(first: Contender, second: Contender, cost: Callable[[Contender], float]) -> bool:
    return (cost(first), first.accuracy) != (cost(second), second.accuracy)
