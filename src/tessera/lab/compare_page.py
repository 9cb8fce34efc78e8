"""A comparison as one HTML file that needs nothing else: the Pareto picture, the numbers, accuracy by question type."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tessera.evaluation.pages import environment, share, style, today
from tessera.io import write_text
from tessera.lab.compare import Comparison, Contender
from tessera.lab.pages.layout import PACKAGE


def write_page(path: str | Path, found: Comparison, command: str = "") -> Path:
    """Writes the page to `path`, whole or not at all. command: what to type to get the same."""
    write_text(path, page(found, command))
    return Path(path)


def page(found: Comparison, command: str = "") -> str:
    """The page as a string."""
    kinds = list(dict.fromkeys(kind for row in found.rows for kind in row.types))
    settings = {label(row): row.options for row in found.rows if row.options}
    return (
        environment(PACKAGE)
        .get_template("compare.html")
        .render(
            version=found.versions.get("tessera", ""),
            css=style(PACKAGE, "compare.css"),
            date=today(),
            title=f"{found.socket[:1].upper()}{found.socket[1:].replace('_', ' ')} on {found.on}",
            command=command,
            found=found,
            best=[label(row) for row in found.rows if row.best and row.how != "bare"],
            figures=_figures(found),
            operations=scatter(found.rows, lambda row: row.flops / 1e9, "GFLOPs of an answer"),
            times=scatter(found.rows, lambda row: row.milliseconds, "milliseconds of an answer"),
            rows=[(label(row), row, _cells(row)) for row in found.rows],
            kinds=kinds,
            types=[(label(row), row, [row.types.get(kind) for kind in kinds]) for row in found.rows],
            settings={"machine": found.machine, "versions": found.versions, "options": settings},
            everything=asdict(found),
        )
    )


def label(row: Contender) -> str:
    """The contender's name, with its budget where there is one."""
    if row.budget is None:
        return row.name
    return f"{row.name} {row.budget:g}" if row.budget <= 1 else f"{row.name}, {row.budget:g} steps"


def _figures(found: Comparison) -> list[tuple[str, str, str]]:
    """(what, number, unit) of the plain model, for the head of the page."""
    plain = found.rows[0]
    half = 100 * (plain.high - plain.low) / 2
    return [
        ("accuracy of the plain model", f"{100 * plain.accuracy:.1f}", f"± {half:.1f} %"),
        ("GFLOPs of an answer", f"{plain.flops / 1e9:.3g}", ""),
        ("milliseconds", f"{plain.milliseconds:.3g}", ""),
        ("parameters", f"{plain.parameters / 1e6:.1f}", "M"),
    ]


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
        about="; ".join(f"{label(row)}: {100 * row.accuracy:.1f} % right, {cost(row):.3g} {title}" for row in rows),
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


def _cells(row: Contender) -> list[str]:
    against = row.against
    return [
        f"{100 * row.accuracy:.1f} %",
        f"{100 * row.low:.1f} – {100 * row.high:.1f}",
        "" if against is None else f"{100 * against.value:+.1f} ({100 * against.low:+.1f} to {100 * against.high:+.1f})",
        "" if row.tokens is None else f"{row.tokens:.4g}",
        f"{row.flops / 1e9:.4g}",
        f"{row.time.median:.2f}",
        f"{row.time.low:.2f} – {row.time.high:.2f}",
        f"{row.milliseconds:.4g}",
        f"{row.parameters / 1e6:.2f} M",
    ]
