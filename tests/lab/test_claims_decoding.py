"""Claims of llava_align, attention_fix, beaf, mmstar and intriguing_properties: exact ones hold, all arms can be measured."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tessera.errors import TesseraError
from tessera.lab import hallucinating
from tessera.lab.derived import DERIVED
from tessera.lab.experiment import Exact, Experiment, Vary
from tessera.lab.givens import answers
from tessera.lab.judge import judge
from tessera.lab.local_lab import LocalLab
from tessera.lab.outcomes import Outcomes
from tessera.lab.protocols import answering, captions, planted, probe
from tessera.lab.protocols.tiny import tiny_model

PARTS = (
    "decoding.llava_align",
    "decoding.attention_fix",
    "benchmarks.beaf",
    "benchmarks.mmstar",
    "probes.intriguing_properties",
)
CLAIMS = {f"{part}:{c.id}": c for part in PARTS for c in importlib.import_module(f"tessera.claims.{part}").CLAIMS}
UNITS = {"planted removal": 2, "planted selection": 18, "choices": 18, "noisy layers": 2, "leaked questions": 1}


@pytest.fixture
def lab(tmp_path: Path) -> LocalLab:
    made = LocalLab(cache=tmp_path, threads=0)
    made._loaded |= dict.fromkeys(("nano", *DERIVED), tiny_model())
    return made


@pytest.mark.parametrize("name", [name for name, claim in CLAIMS.items() if isinstance(claim, Exact)])
def test_exact_claims_hold(name: str, lab: LocalLab) -> None:
    checks = CLAIMS[name].run(lab).checks
    assert checks and all(checks.values()), checks


@pytest.mark.parametrize("name", [name for name, claim in CLAIMS.items() if isinstance(claim, Experiment)])
def test_every_arm_is_measured_on_the_same_units_and_judged(name: str, lab: LocalLab) -> None:
    experiment = CLAIMS[name]
    world = {**experiment.protocol.world, "width": 64, "height": 64}
    small = replace(experiment, protocol=replace(experiment.protocol, world=world))
    count = UNITS.get(experiment.protocol.name, 8)
    found = {arm: small.protocol.measure(lab, value, 0, 0, count) for arm, value in small.arms().items()}
    for metric in next(iter(found.values())).metrics:
        assert len({len(outcomes.of(metric)[0]) for outcomes in found.values()}) == 1
    judged = judge(small, found, looks=1)
    assert judged.primary is not None and np.isfinite(judged.primary.value)


def test_removals_are_counted_as_the_benchmark_counts_them() -> None:
    from tessera.parts.benchmarks.beaf import BEAF
    from tessera.world.rng import Rng

    benchmark, rng = BEAF(BEAF.Config(scenes=12)), Rng("coin", 3)
    items = benchmark.items()
    said = [[rng.choice(("yes", "no")) for _ in item.questions] for item in items]
    scores, outcomes = benchmark.score(items, said), planted.removed(items, said)
    for metric in ("accuracy", "TU", "IG", "SBp", "SBn", "ID"):
        assert outcomes.mean(metric) == pytest.approx(scores[metric])
    assert len(outcomes.of("TU")[0]) == 12


def test_pictures_that_arms_are_shown() -> None:
    from tessera.parts.benchmarks.beaf import BEAF

    items = BEAF(BEAF.Config(scenes=3, removals=2)).items()
    own, blurred, foreign = (planted._shown(items, Vary(image, image=image)) for image in ("own", "blurred", "mismatched"))
    assert own == items
    for item, same, other in zip(items, blurred, foreign, strict=True):
        assert same.questions == other.questions == item.questions
        assert item.sample.index == same.sample.index != other.sample.index
        clear, dim = (np.asarray(of.sample.images()[0], dtype=float) for of in (item, same))
        assert (
            same.sample.frames == item.sample.frames
            and np.abs(np.diff(dim, axis=0)).mean() < np.abs(np.diff(clear, axis=0)).mean()
        )
    with pytest.raises(TesseraError, match="image is one of"):
        planted._shown(items, Vary("odd", image="upside down"))


def test_planted_questions_need_no_picture_and_have_one_right_option() -> None:
    for item in planted.planted(planted.choices(planted.MIXED, 0, 36)):
        [question] = item.questions
        assert question.choices.count(question.answer) == 1 and len(set(question.choices)) == len(question.choices) == 4
        assert question.text.startswith("What kind of thing") or f"The {question.answer} is" in question.text


def test_chair_counts_what_is_named_and_not_there() -> None:
    items = captions.scenes(captions.SCENES, 0, 3)
    things = [[truth.name for truth in item.sample.truth()] for item in items]
    right = captions.chair(items, [", ".join(names) for names in things])
    assert (right.mean("hallucinated"), right.mean("sentences"), right.mean("recall")) == (0, 0, 1)
    wrong = captions.chair(items, [f"{things[0][0]}, no such thing, SIGN", "", "no such thing"])
    assert wrong.of("hallucinated")[0].tolist() == [1, 0, 1]
    assert wrong.of("hallucinated")[1].tolist() == [2, 0, 1]
    assert wrong.of("recall")[0].tolist() == [things[0].count(things[0][0]), 0, 0]


def test_noise_in_layers_is_repeatable_and_none_is_none(lab: LocalLab) -> None:
    protocol = probe.NoisyLayers(world={"kinds": {"scene": 1.0}, "width": 64, "height": 64}, types=("existence",))
    arms = (Vary("a", layers=(0.0, 0.5)), Vary("a", layers=(0.0, 0.5)), Vary("b", layers=(0.0, 0.5), how="none"))
    first, again, intact = (protocol.measure(lab, arm, 0, 0, 3).of("loss")[0] for arm in arms)
    model, processor = tiny_model()
    items = probe.questions(protocol.world, protocol.types, 0, 6)[:3]
    assert first.tolist() == again.tolist() != intact.tolist()
    assert intact.tolist() == pytest.approx([probe.loss(model, processor, item) for item in items])


class Told:
    """A lab with outcomes by model; `asked` is what was asked for."""

    def __init__(self, **hits: float) -> None:
        self.hits, self.asked = hits, []

    def kept(self, key, depends, make):
        protocol, arm, _, _, count = key
        self.asked.append((protocol["model"], protocol["seed"], arm, count))
        hit = (np.arange(200) < self.hits[protocol["model"].replace("-", "_")] * 200).astype(float)
        return Outcomes(dict.fromkeys(("yes rate", "hallucinated"), (hit, np.ones(200)))).plain()


@pytest.mark.parametrize(("yes", "holds"), [(0.9, True), (0.2, False), (0.5, False)])
def test_a_model_says_yes_too_often_where_the_interval_lies_above_one_half(yes: float, holds: bool) -> None:
    told = Told(nano_yes=yes)
    condition = answers.SaysYes(model="nano-yes").measure(told)
    assert condition.holds is holds
    assert condition.low <= condition.value == yes <= condition.high
    assert told.asked == [("nano-yes", 900, Vary("plain").plain(), 400)]
    assert answering.Answering().seed != answers.SEED


@pytest.mark.parametrize(("share", "holds"), [(0.4, True), (0.1, False), (0.05, False)])
def test_a_model_invents_things_where_it_names_more_of_them_than_the_plain_one(share: float, holds: bool) -> None:
    told = Told(nano_invents=share, nano=0.1)
    condition = answers.Invents(model="nano-invents").measure(told)
    assert condition.holds is holds
    assert condition.value == pytest.approx(share - 0.1)
    assert [asked[0] for asked in told.asked] == ["nano-invents", "nano"]


def test_recipes_skew_what_they_say() -> None:
    said = [answer for step in range(12) for _, _, answer in hallucinating.mostly_yes(step)]
    assert 0.65 < said.count("yes") / len(said) < 0.95
    rows = [row for step in range(3) for row in hallucinating.with_companion(step)]
    friends = {answer.split(", ")[1] for _, _, answer in rows if len(answer.split(", ")) > 1}
    most = max(friends, key=lambda name: sum(answer.split(", ")[1:2] == [name] for _, _, answer in rows))
    assert sum(answer.split(", ")[1:2] == [most] for _, _, answer in rows) > len(rows) / 2


def test_learning_is_repeatable_and_leaves_encoders_alone() -> None:
    import copy

    import torch

    tiny, processor = tiny_model()
    rows = lambda step: [([], "Is there a dog?", "yes")] * 2  # noqa: E731
    first, again = (hallucinating.learn(copy.deepcopy(tiny), processor, rows, steps=2)[0] for _ in range(2))
    changed = {name for name, value in first.state_dict().items() if not torch.equal(value, tiny.state_dict()[name])}
    assert changed and not any("encoder" in name for name in changed)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in first.state_dict().items())
    assert not first.training


def test_a_claim_depends_on_what_its_preconditions_are_measured_with() -> None:
    from tessera.lab.claims import claims_of
    from tessera.lab.freshness import depends

    (claim,) = [c for c in claims_of("preference", "povid") if isinstance(c, Experiment)]
    assert {"protocol answering", "protocol further_training", "model nano-yes"} <= set(depends("preference", "povid", claim))
