"""The one rule by which experiments are judged.

The unit of randomisation is the unit of analysis. Where nothing is trained the units are images: all arms answer the same
questions, and whole images are drawn again (bootstrap), since questions about one image go together. Where something is trained
the units are seeds: a t interval over per-seed differences. An experiment may look at growing data at most `LOOKS` times; each
interval is of 1 - 5 % / looks, so that all together are wrong in at most 5 % (Bonferroni).

supported        the interval lies wholly above the margin
contradicted     wholly below it
inconclusive     neither, with the smallest effect that this much data would have shown
invalid          the control did not fail, or this much data does not show that it did
not applicable   a precondition does not hold
crashed          it did not run to its end

Shapes: U units, R resamples. Outcomes are (totals [U], counts [U]) of a metric: see `tessera.lab.outcomes`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np

from tessera.errors import TesseraError
from tessera.lab.experiment import Condition, Effect, Experiment
from tessera.lab.outcomes import Column, Outcomes, Unit

Verdict: TypeAlias = Literal[
    "supported", "contradicted", "inconclusive", "invalid", "not applicable", "holds", "fails", "crashed", "not run"
]
VERDICTS: tuple[Verdict, ...] = (
    "supported", "holds", "inconclusive", "contradicted", "fails", "invalid", "not applicable", "crashed", "not run",
)  # fmt: skip
"""holds and fails are those of exact claims and costs."""

ALPHA = 0.05
RESAMPLES = 4000
EXACT = 1e-9
"""What a sum of equal numbers may be off by: an effect this small is none."""
POWER = 0.9
"""Chance with which the smallest detectable effect is found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """An effect with its interval at confidence `level`; `detectable`: the smallest distance from the margin that this much data
    shows with 90 % chance."""

    words: str
    value: float
    low: float
    high: float
    margin: float
    where: str = ""
    level: float = 0.95
    detectable: float = 0.0

    @property
    def shown(self) -> bool:
        """Whether the interval lies wholly above the margin."""
        return self.low > self.margin + EXACT

    @property
    def refuted(self) -> bool:
        """Whether it lies wholly below the margin."""
        return self.high < self.margin - EXACT


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """How an experiment ended: verdict, the effects with intervals, means of all arms, units and looks."""

    verdict: Verdict
    primary: Estimate | None = None
    validity: tuple[Estimate, ...] = ()
    secondary: tuple[Estimate, ...] = ()
    conditions: tuple[Condition, ...] = ()
    means: Mapping[str, Mapping[str, tuple[float, float, float]]] = field(default_factory=dict)
    units: int = 0
    looks: int = 0


def estimate(effect: Effect, arms: Mapping[str, Outcomes], metric: str, unit: Unit, level: float) -> Estimate:
    """The effect over all units. Raises `TesseraError` when the arms were not measured on the same units."""
    sides = [(weight, *arms[arm].of(name or metric)) for arm, name, weight in effect.terms]
    if len({len(totals) for _, totals, _ in sides}) != 1:
        raise TesseraError(f"{effect.words}: the arms were measured on different numbers of units.")
    for (arm, name, _), (_, totals, counts) in zip(effect.terms, sides, strict=True):
        if not (np.isfinite(totals).all() and np.isfinite(counts).all() and counts.sum() > 0):
            raise TesseraError(f"{arm}: nothing was counted by {name or metric!r}, or something that is no number.")
    value, low, high, detectable = (_of_seeds if unit == "seed" else _of_images)(sides, level)
    where = "" if effect.margin is None else effect.margin.where
    return Estimate(
        words=effect.words,
        value=value,
        low=low,
        high=high,
        margin=effect.threshold,
        where=where,
        level=level,
        detectable=detectable,
    )


def _of_seeds(sides: Sequence[tuple[float, Column, Column]], level: float) -> tuple[float, float, float, float]:
    """Student's t over per-seed values."""
    from scipy import stats

    each = np.sum([weight * totals / np.maximum(counts, 1e-12) for weight, totals, counts in sides], axis=0)
    n = len(each)
    if n < 2:
        return float(each.mean()), -np.inf, np.inf, np.inf
    error = float(each.std(ddof=1) / np.sqrt(n))
    low, high = stats.t.interval(level, n - 1, loc=each.mean(), scale=error) if error else (each[0], each[0])
    needed = (stats.t.ppf(0.5 + level / 2, n - 1) + stats.t.ppf(POWER, n - 1)) * error
    return float(each.mean()), float(low), float(high), float(needed)


def _of_images(sides: Sequence[tuple[float, Column, Column]], level: float) -> tuple[float, float, float, float]:
    """Percentile bootstrap over images, the same images for all arms."""
    from scipy import stats

    weights = [weight for weight, _, _ in sides]
    data = tuple(column for _, totals, counts in sides for column in (totals, counts))

    def statistic(*columns: Any, axis: int = -1) -> Any:
        pairs = zip(columns[::2], columns[1::2], strict=True)
        return sum(w * t.sum(axis) / np.maximum(c.sum(axis), 1e-12) for w, (t, c) in zip(weights, pairs, strict=True))

    value = float(statistic(*data))
    if len(data[0]) < 2:
        return value, -np.inf, np.inf, np.inf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        found = stats.bootstrap(
            data,
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=RESAMPLES,
            batch=200,
            confidence_level=level,
            method="percentile",
            rng=np.random.default_rng(0),
        )
    low, high = (float(end) for end in found.confidence_interval)
    needed = float((stats.norm.ppf(0.5 + level / 2) + stats.norm.ppf(POWER)) * found.standard_error)
    return value, min(value, low), max(value, high), needed


def judge(experiment: Experiment, arms: Mapping[str, Outcomes], looks: int, conditions: Sequence[Condition] = ()) -> Judged:
    """The verdict on what was measured after `looks` looks."""
    level = 1 - ALPHA / len(experiment.sizes())
    unit = experiment.protocol.unit

    def of(effect: Effect) -> Estimate:
        return estimate(effect, arms, experiment.metric, unit, level)

    primary = of(experiment.primary)
    validity = tuple(map(of, experiment.valid_if))
    verdict: Verdict = "inconclusive"
    if not all(condition.holds for condition in conditions):
        verdict = "not applicable"
    elif not all(found.shown for found in validity):
        verdict = "invalid"
    elif primary.shown:
        verdict = "supported"
    elif primary.refuted:
        verdict = "contradicted"
    return Judged(
        verdict=verdict,
        primary=primary,
        validity=validity,
        secondary=tuple(map(of, experiment.secondary)),
        conditions=tuple(conditions),
        means=means(experiment, arms),
        units=len(next(iter(next(iter(arms.values())).metrics.values()))[0]),
        looks=looks,
    )


def means(experiment: Experiment, arms: Mapping[str, Outcomes]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Arm -> metric -> (mean, low, high) with a 95 % interval of its own, of the metrics that effects are about."""
    effects = (experiment.primary, *experiment.valid_if, *experiment.secondary)
    wanted = dict.fromkeys([experiment.metric, *(name for e in effects for _, name, _ in e.terms if name)])
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for name, outcomes in arms.items():
        found[name] = {}
        for metric in wanted:
            if metric in outcomes.metrics:
                one = estimate(Effect(((name, metric, 1.0),), ""), arms, metric, experiment.protocol.unit, 0.95)
                found[name][metric] = (one.value, one.low, one.high)
    return found


Measure: TypeAlias = "Callable[[str, int, int, int], Outcomes]"
"""(arm, look, first unit, units) -> outcomes of these units."""


def run(experiment: Experiment, measure: Measure, conditions: Sequence[Condition] = ()) -> tuple[Judged, dict[str, Outcomes]]:
    """Measures all arms look by look until the interval decides or the looks end; (the verdict, all outcomes).

    Nothing is measured where a precondition does not hold.
    """
    if not all(condition.holds for condition in conditions):
        return Judged(verdict="not applicable", conditions=tuple(conditions)), {}
    arms: dict[str, Outcomes] = {}
    judged = Judged(verdict="not run")
    first = 0
    for look, size in enumerate(experiment.sizes()):
        for name in experiment.arms():
            more = measure(name, look, first, size - first)
            arms[name] = arms[name] + more if look else more
        first = size
        judged = judge(experiment, arms, look + 1, conditions)
        hopeless = judged.verdict == "invalid" and any(found.refuted for found in judged.validity)
        if judged.verdict in ("supported", "contradicted") or hopeless:
            break
    return judged, arms
