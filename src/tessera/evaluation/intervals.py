"""Confidence intervals (95 %) of measured shares and differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959963984540054
"""Two-sided 95 % of the normal distribution."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A value between the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(right: int, n: int, z: float = Z) -> Interval:
    """The share right / n with Wilson's score interval, which stays inside 0..1 and is honest at its ends.

    Source: E. B. Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927. Of nothing (n = 0) it is
    0 between 0 and 1. scipy's `binomtest(right, n).proportion_ci` gives the same, but tests a hypothesis first: 0.4 to 0.5 ms
    against 1.4 us, and 0.8 s for its import. Raises `ValueError` unless 0 <= right <= n.
    """
    if not 0 <= right <= n:
        raise ValueError(f"{right} of {n} is not a share")
    if n == 0:
        return Interval(0.0, 0.0, 1.0)
    share = right / n
    scale = 1 + z * z / n
    centre = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def mean_of(shares: Sequence[tuple[int, int]], z: float = Z) -> Interval:
    """The unweighted mean of independent shares (right, n), by the normal approximation of its error; scipy's intervals are of
    one share."""
    if not shares:
        return Interval(0.0, 0.0, 1.0)
    value = sum(right / max(1, n) for right, n in shares) / len(shares)
    # Add-one smoothing: a share of exactly 0 or 1 is not known without error.
    smooth = [((right + 1) / (n + 2), n) for right, n in shares]
    half = z * math.sqrt(sum(p * (1 - p) / max(1, n) for p, n in smooth)) / len(shares)
    return Interval(value, max(0.0, value - half), min(1.0, value + half))


def paired_bootstrap(
    first: Sequence[Sequence[int]], second: Sequence[Sequence[int]], draws: int = 2000, seed: int = 0
) -> Interval:
    """The difference of two models' accuracies on the same questions, `first` minus `second`.

    Both hold, per image, the outcomes (1 right, 0 wrong) of the questions about it, in one order. Whole images are drawn with
    replacement, because questions about one image are right or wrong together; the interval holds the middle 95 % of
    `draws` drawn differences. `scipy.stats.bootstrap` draws the same and gives the same ends, in 11 ms against 7 for 300 images;
    everyone who looks at a result would wait 0.8 s for its import. Raises `ValueError` when the two do not belong together or are
    empty.
    """
    sizes = [len(outcomes) for outcomes in first]
    if sizes != [len(outcomes) for outcomes in second] or not sum(sizes):
        raise ValueError("a paired difference needs the outcomes of the same questions")
    gains = np.array([sum(a) - sum(b) for a, b in zip(first, second, strict=True)], dtype=np.float64)
    counts = np.array(sizes, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(0, len(sizes), (draws, len(sizes)))
    totals = np.maximum(counts[drawn].sum(1), 1)
    low, high = np.quantile(gains[drawn].sum(1) / totals, (0.025, 0.975))
    value = float(gains.sum() / counts.sum())
    return Interval(value, min(value, float(low)), max(value, float(high)))
