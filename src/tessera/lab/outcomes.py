"""Outcomes: what was measured of an arm, unit by unit.

Shapes: U units. An outcome of a metric is (totals [U], counts [U]); its mean is the sum of totals over that of counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tessera.errors import TesseraError

Unit: TypeAlias = Literal["image", "seed"]
"""Of analysis: images where nothing is trained, seeds where something is."""
Column: TypeAlias = NDArray[np.float64]
"""One number for each unit [U]."""


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What was measured of one arm: metric -> (totals [U], counts [U]), in the same order of units for all arms."""

    metrics: Mapping[str, tuple[Column, Column]]

    def mean(self, metric: str) -> float:
        """Sum of the totals over that of the counts; 0 where nothing was counted."""
        totals, counts = self.of(metric)
        return float(totals.sum() / counts.sum()) if counts.sum() else 0.0

    def of(self, metric: str) -> tuple[Column, Column]:
        """(totals, counts). Raises `TesseraError` for a metric that was not measured."""
        if metric not in self.metrics:
            raise TesseraError(f"no arm was measured by {metric!r}, but by {', '.join(self.metrics)}.")
        return self.metrics[metric]

    def __add__(self, more: Outcomes) -> Outcomes:
        """The units of both, one after the other."""
        if self.metrics.keys() != more.metrics.keys():
            raise TesseraError(f"outcomes of different metrics cannot be joined: {list(self.metrics)} and {list(more.metrics)}.")
        joined = {
            name: (np.concatenate([a[0], more.metrics[name][0]]), np.concatenate([a[1], more.metrics[name][1]]))
            for name, a in self.metrics.items()
        }
        return Outcomes(joined)

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return {name: [np.round(t, 9).tolist(), np.round(c, 9).tolist()] for name, (t, c) in self.metrics.items()}

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> Outcomes:
        """From `plain`."""
        return cls({k: (np.asarray(t, dtype=np.float64), np.asarray(c, dtype=np.float64)) for k, (t, c) in value.items()})


def per_seed(values: Mapping[str, Sequence[float]]) -> Outcomes:
    """Outcomes of trained arms: metric -> one number per seed."""
    return Outcomes({k: (np.asarray(v, dtype=np.float64), np.ones(len(v))) for k, v in values.items()})


def averaged(repeats: Sequence[Outcomes]) -> Outcomes:
    """The same units measured several times, averaged unit by unit: a control over its own random seeds."""

    def mean(metric: str, side: int) -> Column:
        return np.asarray(np.mean([outcomes.of(metric)[side] for outcomes in repeats], axis=0))

    return Outcomes({metric: (mean(metric, 0), mean(metric, 1)) for metric in repeats[0].metrics})
