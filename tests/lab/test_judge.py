"""The judge: false positive rate and power by simulation, intervals against formulas, growing looks, every verdict."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from scipy import stats

from tessera.errors import TesseraError
from tessera.lab import judge
from tessera.lab.experiment import (
    Arm,
    Condition,
    Effect,
    Experiment,
    Paper,
    Vary,
    beats,
    below,
    loses,
    reaches,
    reduces,
    retains,
    stays_under,
    worse,
)
from tessera.lab.outcomes import Outcomes, Unit, per_seed
from tessera.lab.protocols.base import Protocol


@dataclass(frozen=True, slots=True)
class Seeds(Protocol):
    name: ClassVar[str] = "simulated seeds"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8, 12)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)


@dataclass(frozen=True, slots=True)
class Images(Seeds):
    name: ClassVar[str] = "simulated images"
    unit: ClassVar[Unit] = "image"
    looks: ClassVar[tuple[int, ...]] = (60, 120, 240)


def experiment(protocol=None, **changes):
    values = dict(
        id="simulated",
        promise="The treatment is better.",
        protocol=protocol or Seeds(),
        treatment=Vary("new"),
        baseline=Vary("old"),
        control=Vary("placebo"),
        primary=beats("baseline"),
        valid_if=(worse("control"),),
    )
    return Experiment(**{**values, **changes})


def seeds_with(rng, effect, spread=2.0):
    """Per-seed accuracies: a common part per seed, and an effect that varies over seeds."""
    common = rng.normal(60, 5, 12)
    arms = {
        "treatment": common + effect + rng.normal(0, spread, 12),
        "baseline": common,
        "control": common - 30 + rng.normal(0, spread, 12),
    }
    return lambda arm, look, first, count: per_seed({"accuracy": arms[arm][first : first + count]})


def images_with(rng, effect):
    """Images of 1 to 4 questions that are right or wrong together."""
    counts = rng.integers(1, 5, 240).astype(float)
    hard = rng.beta(2, 1, 240)

    def right(shift):
        return rng.binomial(counts.astype(int), np.clip(hard + shift, 0, 1)).astype(float)

    arms = {"treatment": right(effect), "baseline": right(0.0), "control": right(-0.6)}
    return lambda arm, look, first, count: Outcomes(
        {"accuracy": (arms[arm][first : first + count], counts[first : first + count])}
    )


def fixed_questions_with(rng, effect, spread=6.0):
    """Every seed answers the same 120 questions, some of which are harder for all of them; the effect of each seed is its own."""
    hard = rng.normal(0.6, 0.2, 120)
    arms = {
        arm: [
            rng.binomial(1, np.clip(hard + shift / 100, 0, 1)).mean() * 100
            for shift in mean + rng.normal(0, spread if arm == "treatment" else 0, 12)
        ]
        for arm, mean in (("treatment", effect), ("baseline", 0.0), ("control", -40.0))
    }
    return lambda arm, look, first, count: per_seed({"accuracy": arms[arm][first : first + count]})


def share(protocol, make, runs):
    """Share of simulated experiments that are called supported."""
    rng = np.random.default_rng(1)
    found = [judge.run(experiment(protocol), make(rng))[0].verdict for _ in range(runs)]
    return found.count("supported") / runs


def most(rate, runs):
    """The largest count that a true rate gives in 99.9 % of simulations, as a share."""
    return stats.binom.ppf(0.999, runs, rate) / runs


def test_no_effect_over_seeds_is_called_supported_in_at_most_five_percent():
    assert share(Seeds(), lambda rng: seeds_with(rng, 0.0), 400) <= most(0.05, 400)


def test_no_effect_on_average_over_the_same_questions_is_called_supported_in_at_most_five_percent():
    assert share(Seeds(), lambda rng: fixed_questions_with(rng, 0.0), 400) <= most(0.05, 400)


def test_no_effect_over_images_is_called_supported_in_at_most_five_percent(monkeypatch):
    monkeypatch.setattr(judge, "RESAMPLES", 400)
    assert share(Images(), lambda rng: images_with(rng, 0.0), 150) <= most(0.05, 150)


def test_twice_the_smallest_detectable_effect_is_found_in_ninety_percent():
    level, n, spread = 1 - 0.05 / 3, 12, 2.0
    detectable = (stats.t.ppf(0.5 + level / 2, n - 1) + stats.t.ppf(0.9, n - 1)) * spread / np.sqrt(n)
    assert share(Seeds(), lambda rng: seeds_with(rng, 2 * detectable, spread), 200) >= 1 - most(0.1, 200)


def test_the_smallest_detectable_effect_itself_is_found_about_nine_times_in_ten():
    level, n, spread = 1 - 0.05 / 3, 12, 2.0
    detectable = (stats.t.ppf(0.5 + level / 2, n - 1) + stats.t.ppf(0.9, n - 1)) * spread / np.sqrt(n)
    found = share(Seeds(), lambda rng: seeds_with(rng, detectable, spread), 300)
    assert stats.binom.ppf(0.0005, 300, 0.85) / 300 <= found


def test_the_interval_over_seeds_is_students():
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=7), rng.normal(size=7)
    arms = {"treatment": per_seed({"accuracy": a}), "baseline": per_seed({"accuracy": b})}
    found = judge.estimate(beats("baseline"), arms, "accuracy", "seed", 0.95)
    half = stats.t.ppf(0.975, 6) * (a - b).std(ddof=1) / np.sqrt(7)
    assert found.value == pytest.approx((a - b).mean())
    assert (found.low, found.high) == pytest.approx(((a - b).mean() - half, (a - b).mean() + half))


def test_images_are_paired_and_drawn_whole():
    """With the same answers in both arms there is no uncertainty about the difference; with one question an image the interval is
    near the textbook one."""
    rng = np.random.default_rng(4)
    totals, counts = rng.binomial(3, 0.5, 300).astype(float), np.full(300, 3.0)
    same = {name: Outcomes({"accuracy": (totals, counts)}) for name in ("treatment", "baseline")}
    found = judge.estimate(beats("baseline"), same, "accuracy", "image", 0.95)
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    a, b = rng.binomial(1, 0.7, 800).astype(float), rng.binomial(1, 0.5, 800).astype(float)
    one = np.ones(800)
    arms = {"treatment": Outcomes({"accuracy": (a, one)}), "baseline": Outcomes({"accuracy": (b, one)})}
    found = judge.estimate(beats("baseline"), arms, "accuracy", "image", 0.95)
    half = 1.96 * (a - b).std() / np.sqrt(800)
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


@pytest.mark.parametrize(
    ("effect", "treatment", "baseline", "value", "shown"),
    [
        (beats("baseline"), 0.7, 0.6, 0.1, True),
        (beats("baseline", Paper(0.2, "table 1")), 0.7, 0.6, 0.1, False),
        (below("baseline"), 0.2, 0.3, 0.1, True),
        (retains("baseline", Paper(0.95, "table 1")), 0.80, 0.82, 0.80 - 0.95 * 0.82, True),
        (retains("baseline", Paper(0.95, "table 1")), 0.70, 0.82, 0.70 - 0.95 * 0.82, False),
        (loses("baseline", Paper(0.03, "table 1")), 0.58, 0.60, -0.02, True),
        (loses("baseline", Paper(0.01, "table 1")), 0.58, 0.60, -0.02, False),
        (reduces("baseline", Paper(0.5, "table 2")), 0.1, 0.3, 0.05, True),
        (reaches(Paper(0.9, "table 2")), 0.95, 0.0, 0.95, True),
        (stays_under(Paper(0.05, "table 2")), 0.1, 0.0, -0.1, False),
    ],
)
def test_effects_are_positive_when_the_promise_is_kept(effect, treatment, baseline, value, shown):
    arms = {"treatment": per_seed({"accuracy": [treatment] * 5}), "baseline": per_seed({"accuracy": [baseline] * 5})}
    found = judge.estimate(effect, arms, "accuracy", "seed", 0.95)
    assert found.value == pytest.approx(value)
    assert found.shown is shown
    assert found.refuted is not shown


def fixed(treatment, baseline, control):
    values = {"treatment": treatment, "baseline": baseline, "control": control}
    return lambda arm, look, first, count: per_seed({"accuracy": [values[arm] + 0.01 * (s % 2) for s in range(count)]})


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ((0.8, 0.6, 0.3), "supported"),
        ((0.5, 0.6, 0.3), "contradicted"),
        ((0.6, 0.6, 0.3), "inconclusive"),
        ((0.8, 0.6, 0.8), "invalid"),
        ((0.8, 0.6, 0.9), "invalid"),
    ],
)
def test_verdicts(numbers, verdict):
    assert judge.run(experiment(), fixed(*numbers))[0].verdict == verdict


def test_a_decided_experiment_stops_at_the_first_look():
    judged, arms = judge.run(experiment(), fixed(0.8, 0.6, 0.3))
    assert (judged.looks, judged.units, len(arms)) == (1, 5, 3)
    undecided, _ = judge.run(experiment(), fixed(0.6, 0.6, 0.3))
    assert (undecided.looks, undecided.units) == (3, 12)


def test_nothing_is_measured_where_a_precondition_does_not_hold():
    missing = Condition(words="redundant tokens", value=0.1, low=0.0, high=0.2, needed=0.5, holds=False)

    def never(*_):
        raise AssertionError("measured all the same")

    judged, arms = judge.run(experiment(), never, [missing])
    assert (judged.verdict, arms) == ("not applicable", {})


def test_outcomes_survive_json_and_join():
    first = per_seed({"accuracy": [0.1, 0.2]})
    both = first + Outcomes.parse(per_seed({"accuracy": [0.3]}).plain())
    assert both.of("accuracy")[0].tolist() == [0.1, 0.2, 0.3]
    with pytest.raises(TesseraError, match="accuracy"):
        both.of("speed")


def test_an_experiment_says_how_its_control_fails_and_takes_enough_seeds():
    with pytest.raises(TesseraError, match="valid_if"):
        experiment(valid_if=())
    with pytest.raises(TesseraError, match="five seeds"):
        experiment(looks=(3,))
    with pytest.raises(TesseraError, match="1 to 3 growing"):
        experiment(looks=(5, 6, 7, 8))
    with pytest.raises(TesseraError, match="no arm is called other"):
        experiment(primary=beats("other"))
    with pytest.raises(TesseraError, match="place in the paper"):
        Paper(0.95, " ")


def test_a_weight_that_the_paper_does_not_give_is_refused():
    with pytest.raises(TesseraError, match="numbers of the paper"):
        Effect((("treatment", "", 1.0), ("baseline", "", -0.9)), "treatment is near baseline")
    assert retains("baseline", Paper(0.9, "table 1")).terms[1][2] == -0.9


def test_wording_does_not_change_the_digest_and_what_is_judged_does():
    one = experiment(primary=retains("baseline", Paper(0.95, "table 1")))
    assert one.digest() == experiment(primary=retains("baseline", Paper(0.95, "table 9")), promise="Else.", note="so").digest()
    assert one.digest() != experiment(primary=retains("baseline", Paper(0.9, "table 1"))).digest()
    assert one.digest() != experiment(primary=retains("baseline", Paper(0.95, "table 1")), control=Vary("else")).digest()


def test_what_is_equal_shows_nothing_and_nothing_counted_is_no_zero() -> None:
    ones = np.ones(6)
    same = Outcomes({"accuracy": (ones * 0.7, ones), "other": (ones * 0.1, ones)})
    terms = (("a", "", 1.0), ("a", "other", -1.0), ("b", "", -1.0), ("b", "other", 1.0))
    found = judge.estimate(Effect(terms, "equal"), {"a": same, "b": same}, "accuracy", "seed", 0.95)
    assert not found.shown and not found.refuted
    for totals, counts in ((ones, ones * 0), (ones * np.nan, ones)):
        odd = Outcomes({"accuracy": (totals, counts)})
        with pytest.raises(TesseraError, match="nothing was counted"):
            judge.estimate(Effect((("a", "", 1.0),), "odd"), {"a": odd}, "accuracy", "seed", 0.95)
