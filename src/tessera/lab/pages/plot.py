"""What a claim measured, as bars: the part, what it is compared with, and what should fail. Shapes are SVG, words are HTML."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tessera.lab.evidence import Entry
from tessera.lab.pages.text import escape, number, words

ROLES = {"measured": "this part", "baseline": "baseline", "control": "control"}
_WIDE = 1000.0
"""Ratio of the largest to the smallest value from which on they are shown as dots on a logarithmic axis."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One number of a claim: its role is a key of `ROLES`; `spread` is None where nothing varied."""

    role: str
    value: float
    spread: float | None


def groups(entry: Entry) -> dict[str, list[Bar]]:
    """Name of a number -> its bars, in the order in which they were measured."""
    found: dict[str, list[Bar]] = {}
    for role in ROLES:
        for name, value in getattr(entry, role).items():
            spread = entry.spread.get(name) if role == "measured" else entry.spread.get(f"{role} {name}")
            found.setdefault(name, []).append(Bar(role, value, spread))
    return found


def plots(entry: Entry) -> str:
    """All numbers of a claim as HTML: bars where there is something to compare with, else the number alone."""
    compared, alone = [], []
    for name, bars in groups(entry).items():
        if len(bars) > 1 and all(math.isfinite(bar.value) for bar in bars):
            compared.append(_group(name, bars))
        else:
            alone += [_alone(name, bar) for bar in bars]
    drawn = f'<div class="groups">{"".join(compared)}</div>' if compared else ""
    return drawn + (f'<dl class="alone">{"".join(alone)}</dl>' if alone else "")


def _alone(name: str, bar: Bar) -> str:
    role = "" if bar.role == "measured" else f" <small>{ROLES[bar.role]}</small>"
    return f"<div><dt>{escape(words(name))}{role}</dt><dd>{_value(bar)}</dd></div>"


def _group(name: str, bars: Sequence[Bar]) -> str:
    values = [bar.value for bar in bars]
    logarithmic = min(values) > 0 and max(values) > _WIDE * min(values)
    low, high = _range(bars, logarithmic)
    rows = "".join(_row(bar, low, high, logarithmic) for bar in bars)
    scale = f"{number(low)} to {number(high)}" + (", logarithmic" if logarithmic else "")
    said = "; ".join(f"{ROLES[bar.role]} {_plain(bar)}" for bar in bars)
    return (
        f'<figure class="group" role="img" aria-label="{escape(f"{words(name)}: {said}")}">'
        f"<figcaption><b>{escape(words(name))}</b><small>{scale}</small></figcaption>{rows}</figure>"
    )


def _row(bar: Bar, low: float, high: float, logarithmic: bool) -> str:
    def at(value: float) -> float:
        inside = min(max(value, low), high)
        if logarithmic:
            return 100 * math.log(inside / low) / math.log(high / low)
        return 100 * (inside - low) / (high - low)

    place, zero = at(bar.value), at(0.0) if not logarithmic else 0.0
    if logarithmic:
        shape = f'<path class="stem" d="M0 6H{place:.2f}"/><path class="dot" d="M{place:.2f} 6h0"/>'
    else:
        left, width = min(place, zero), max(abs(place - zero), 0.3)
        shape = f'<rect x="{left:.2f}" y="1" width="{width:.2f}" height="10"/>'
    whisker = ""
    if bar.spread:
        a, b = at(bar.value - bar.spread), at(bar.value + bar.spread)
        whisker = f'<path class="whisk" d="M{a:.2f} 6H{b:.2f}M{a:.2f} 3.5V8.5M{b:.2f} 3.5V8.5"/>'
    axis = f'<path class="zero" d="M{zero:.2f} 0V12"/>'
    svg = f'<svg viewBox="0 0 100 12" preserveAspectRatio="none" aria-hidden="true">{shape}{whisker}{axis}</svg>'
    return f'<div class="{bar.role}"><span>{ROLES[bar.role]}</span>{svg}<em>{_value(bar)}</em></div>'


def _range(bars: Sequence[Bar], logarithmic: bool) -> tuple[float, float]:
    """What the axis shows: from zero for bars, whole decades for dots; shares are shown from 0 to 1."""
    values = [bar.value for bar in bars]
    if logarithmic:
        return 10.0 ** math.floor(math.log10(min(values))), 10.0 ** math.ceil(math.log10(max(values)))
    ends = [0.0, *(bar.value + sign * (bar.spread or 0.0) for bar in bars for sign in (-1, 1))]
    low, high = (0.0 if min(values) >= 0 else min(ends)), max(ends)
    if low == 0.0 and 0.2 < high <= 1.02:
        return 0.0, 1.0
    size = max(high, -low) or 1.0
    unit = 10.0 ** math.floor(math.log10(size))
    step = next(m * unit for m in (1, 2, 2.5, 5, 10) if m * unit >= size) / 10
    return math.floor(low / step + 1e-9) * step, max(math.ceil(high / step - 1e-9) * step, 0.0) or (0.0 if low < 0 else 1.0)


def _value(bar: Bar) -> str:
    spread = f" <small>± {number(bar.spread)}</small>" if bar.spread else ""
    return f"{number(bar.value)}{spread}"


def _plain(bar: Bar) -> str:
    return number(bar.value) + (f" plus or minus {number(bar.spread)}" if bar.spread else "")
