"""Intervals against known values, against simulation, and at their ends."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.evaluation.intervals import Z, mean_of, paired_bootstrap, wilson


@pytest.mark.parametrize(("right", "n"), [(1, 20), (50, 100), (3, 7), (280, 281)])
def test_wilson_ends_where_the_share_is_just_z_deviations_away(right: int, n: int) -> None:
    found = wilson(right, n)
    for end in (found.low, found.high):
        assert (right / n - end) ** 2 == pytest.approx(Z**2 * end * (1 - end) / n)


def test_wilson_of_none_and_of_all() -> None:
    assert wilson(0, 10).low == 0.0
    assert wilson(0, 10).high == pytest.approx(Z**2 / (10 + Z**2))
    assert wilson(10, 10).low == pytest.approx(10 / (10 + Z**2))
    assert wilson(0, 0).high == 1.0


@given(st.integers(0, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_encloses_the_share_and_stays_inside(pair: tuple[int, int]) -> None:
    found = wilson(*pair)
    assert 0 <= found.low <= found.value <= found.high <= 1
    assert found.high - found.low <= 1


def test_wilson_covers_the_truth_about_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).binomial(60, 0.9, 2000)
    covered = np.mean([wilson(int(k), 60).low <= 0.9 <= wilson(int(k), 60).high for k in draws])
    assert 0.93 <= covered <= 0.98


def test_more_right_than_asked_is_refused() -> None:
    with pytest.raises(ValueError, match="3 of 2"):
        wilson(3, 2)


def test_the_mean_weighs_every_share_alike() -> None:
    found = mean_of([(10, 10), (0, 1000)])
    assert found.value == pytest.approx(0.5)
    assert found.low < 0.5 < found.high
    assert mean_of([]).high == 1.0


def test_the_mean_of_large_samples_is_sure() -> None:
    few, many = mean_of([(5, 10)] * 3), mean_of([(500, 1000)] * 3)
    assert many.high - many.low < (few.high - few.low) / 5


def test_equal_outcomes_differ_by_nothing() -> None:
    outcomes = [[1, 0], [0], [1, 1, 1]]
    found = paired_bootstrap(outcomes, outcomes)
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_a_clear_gain_is_above_zero_and_repeats() -> None:
    rng = np.random.default_rng(1)
    first = [list(rng.binomial(1, 0.8, 3)) for _ in range(100)]
    second = [list(rng.binomial(1, 0.3, 3)) for _ in range(100)]
    found = paired_bootstrap(first, second)
    assert 0.35 < found.low < found.value < found.high < 0.65
    assert found == paired_bootstrap(first, second)


def test_questions_about_one_image_count_together() -> None:
    alone = [[1], [0]] * 50
    together = [[1] * 10, [0] * 10] * 5
    zeros = [[0] * len(x) for x in together]
    wide, narrow = paired_bootstrap(together, zeros), paired_bootstrap(alone, [[0]] * 100)
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


@pytest.mark.parametrize(("first", "second"), [([[1]], [[1, 0]]), ([[1]], []), ([], []), ([[]], [[]])])
def test_outcomes_that_do_not_belong_together_are_refused(first: list[list[int]], second: list[list[int]]) -> None:
    with pytest.raises(ValueError, match="same questions"):
        paired_bootstrap(first, second)


@pytest.mark.parametrize("n", [1, 2, 7, 100, 5400])
def test_wilson_is_scipy_s(n: int) -> None:
    from scipy.stats import binomtest

    for right in {0, 1, n // 3, n - 1, n}:
        ends, found = binomtest(right, n).proportion_ci(0.95, "wilson"), wilson(right, n)
        assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=1e-14)


def test_the_paired_bootstrap_is_scipy_s() -> None:
    from scipy.stats import bootstrap

    random = np.random.default_rng(5)
    first = [list(random.binomial(1, 0.6, size)) for size in random.integers(1, 6, 50)]
    second = [list(random.binomial(1, 0.4, len(outcomes))) for outcomes in first]
    data = ([sum(a) - sum(b) for a, b in zip(first, second, strict=True)], [len(a) for a in first])
    ends = bootstrap(
        data,
        lambda gains, counts, axis=-1: gains.sum(axis) / counts.sum(axis),
        paired=True,
        n_resamples=2000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = paired_bootstrap(first, second)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=1e-12)
