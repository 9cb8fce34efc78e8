"""Two ways of doing the same work, timed in turns in one process, so that whatever else the machine does hits both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tessera.errors import UserError


@dataclass(slots=True, kw_only=True)
class Ratio:
    """How many times longer one side took than the other: the median over the rounds, and the extremes."""

    median: float
    low: float
    high: float


def interleaved(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every side in every round, the sides taking turns in going first; one round before does not count.

    Raises `UserError` for less than one round.
    """
    if rounds < 1:
        raise UserError(f"at least one round must be measured; got {rounds}.")
    taken: dict[str, list[float]] = {name: [] for name in sides}
    order = list(sides)
    for work in sides.values():
        work()
    for number in range(rounds):
        for name in order if number % 2 == 0 else reversed(order):
            begin = time.perf_counter()
            sides[name]()
            taken[name].append(time.perf_counter() - begin)
    return taken


def ratio(slow: list[float], fast: list[float], digits: int = 2) -> Ratio:
    """`slow` over `fast`, round by round, rounded to `digits` behind the point."""
    each = sorted(a / b for a, b in zip(slow, fast, strict=True))
    return Ratio(median=round(statistics.median(each), digits), low=round(each[0], digits), high=round(each[-1], digits))


def median(seconds: list[float]) -> float:
    """The median, in seconds with five digits."""
    return float(f"{statistics.median(seconds):.5g}")
