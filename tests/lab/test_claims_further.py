"""Further training of a reference model: what is learned, what arms share, how answers are read; the claims that stand on it."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.errors import TesseraError
from tessera.hosts.zoo import fill
from tessera.lab import further
from tessera.lab.around import plugged
from tessera.lab.claims import claims_of
from tessera.lab.contract.training import SIDE, subject
from tessera.lab.experiment import Exact, Experiment, Use, Vary
from tessera.lab.local_lab import LocalLab
from tessera.lab.protocols import further_training
from tessera.lab.protocols.further_training import FurtherTraining, fine_tuning, train_and_test_data, trained
from tessera.lab.protocols.programs import Programs

PARTS = [
    ("preference", "povid"),
    ("preference", "s_vco"),
    ("tuning", "arcana"),
    ("distillation", "vpd"),
    ("tokens", "m3"),
]
CLAIMS = [(*part, claim) for part in PARTS for claim in claims_of(*part)]
EXACT = [row for row in CLAIMS if isinstance(row[2], Exact)]
TRAINED = [row for row in CLAIMS if isinstance(row[2], Experiment) and isinstance(row[2].protocol, FurtherTraining)]
SMALL: dict[str, Any] = {"kinds": {"scene": 1.0}, "things": (1, 3), "width": SIDE, "height": SIDE}
ASKED: dict[str, Any] = {"types": ("existence",), "world": SMALL, "pictures": 4, "most": 2}
TINY = FurtherTraining(
    world=SMALL,
    types=("existence",),
    scenes=4,
    most=2,
    steps=2,
    batch=2,
    tests={"there": ASKED, "other": {**ASKED, "image": "mismatched"}},
)


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    model, processor = copy.deepcopy(subject("nano")[0]), subject("nano")[1]
    fill(model, 0)
    return model.eval(), processor


@pytest.fixture
def lab(tiny, tmp_path: Path) -> LocalLab:
    lab = LocalLab(cache=tmp_path, threads=0)
    lab._loaded |= {"nano": tiny, "nano-yes": tiny}
    return lab


def small(protocol: FurtherTraining) -> FurtherTraining:
    """The protocol with few, small pictures and two steps."""

    def world(options):
        return {**options, "width": SIDE, "height": SIDE}

    tests = {name: {**test, "world": world(test["world"]), "pictures": 4, "most": 1} for name, test in protocol.tests.items()}
    return replace(protocol, world=world(protocol.world), steps=2, batch=1, scenes=2, most=1, tests=tests)


@pytest.mark.parametrize(("socket", "part", "claim"), EXACT, ids=[f"{s}/{p}: {c.id}" for s, p, c in EXACT])
def test_exact_claims_hold(socket, part, claim, tmp_path: Path) -> None:
    checked = claim.run(LocalLab(cache=tmp_path, threads=0))
    assert all(checked.checks.values()), checked


@pytest.mark.parametrize(("socket", "part", "claim"), TRAINED, ids=[f"{s}/{p}: {c.id}" for s, p, c in TRAINED])
def test_every_arm_gives_what_the_effects_are_about(socket, part, claim, lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lab, "kept", lambda key, depends, make: make())
    found = {name: small(claim.protocol).measure(lab, arm, 0, 0, 1) for name, arm in claim.arms().items()}
    for effect in (claim.primary, *claim.valid_if, *claim.secondary):
        for arm, metric, _ in effect.terms:
            totals, counts = found[arm].of(metric or claim.metric)
            assert len(totals) == len(counts) == 1


def test_arms_that_differ_in_their_test_share_a_training_and_the_model_as_it_is_is_asked_of_every_seed(lab, monkeypatch) -> None:
    runs, keys, whole = [], {}, further_training.trained
    monkeypatch.setattr(further_training, "trained", lambda *arguments: runs.append(1) or whole(*arguments))
    monkeypatch.setattr(
        lab, "kept", lambda key, depends, make: keys.setdefault(repr((key, depends)), None) or _keep(keys, key, depends, make)
    )
    for arm in (Vary("own"), Vary("other", test="other")):
        assert len(TINY.measure(lab, arm, 0, 0, 2).of("accuracy")[0]) == 2
    assert len(runs) == 2
    before = TINY.measure(lab, Vary("before", steps=0), 0, 0, 3).of("accuracy")[0]
    assert len(runs) == 5 and len(before) == 3  # the scenes are each seed's own


def _keep(keys, key, depends, make):
    keys[repr((key, depends))] = made = make()
    return made


def test_the_seed_is_that_of_the_data_and_arms_share_it(tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny
    train_data, _ = train_and_test_data(TINY, model, processor, 0)
    seen: list[list[int]] = []
    whole = further.batch
    monkeypatch.setattr(further, "batch", lambda p, pool, images, **o: seen.append(list(images)) or whole(p, pool, images, **o))
    tuning = {"kind": "arcana", "rank_visual": 2, "rank_text": 2, "dropout": 0.0}
    for arm, seed in ((Vary("a"), 0), (Vary("b", tuning=tuning), 0), (Vary("a"), 1)):
        further.learn(copy.deepcopy(model), processor, fine_tuning(replace(TINY, steps=6), arm), train_data, seed)
    first, second, other = seen[:6], seen[6:12], seen[12:]
    assert first == second != other


def test_a_tuning_alone_trains_and_encoders_never_do(tiny) -> None:
    model, processor = tiny
    train_data, _ = train_and_test_data(TINY, model, processor, 0)
    tuning = {"kind": "arcana", "rank_visual": 2, "rank_text": 2, "dropout": 0.0}
    moved = {}
    for name, arm in (("all", Vary("all")), ("tuning", Vary("tuning", tuning=tuning))):
        other = copy.deepcopy(model)
        losses = further.learn(other, processor, fine_tuning(replace(TINY, steps=24), arm), train_data, 0)
        assert sum(losses[-6:]) < sum(losses[:6])  # batches differ
        after = dict(other.named_parameters())
        moved[name] = {key for key, value in model.named_parameters() if not torch.equal(value, after[key])}
    assert moved["tuning"] == set()
    assert moved["all"]
    assert not any(".encoders." in key for key in moved["all"])


@pytest.mark.parametrize("parts", [{}, {"m3": {"factor": 2}}, {"m3": {"factor": 4}}], ids=str)
def test_questions_of_one_row_are_blind_to_each_other(parts, tiny) -> None:
    model, processor = tiny
    pool = further.pool_of(model, processor, 2, split="train", types=("existence", "attribute"), most=3, world=SMALL)
    assert all(len(asked) > 1 for asked in pool.asked)
    alone = further.FineTuningPool(
        pool.pixels.repeat_interleave(torch.tensor([len(a) for a in pool.asked]), 0),
        pool.seen.repeat_interleave(torch.tensor([len(a) for a in pool.asked]), 0),
        [[question] for asked in pool.asked for question in asked],
    )
    with torch.no_grad(), plugged(model, parts):
        losses = []
        for of in (pool, alone):
            inputs = further.batch(processor, of, range(len(of.asked)), pixels=True)
            losses.append(float(model(**inputs).loss))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_answers_are_read_as_greedy_decoding_would_give_them(tiny) -> None:
    model, processor = copy.deepcopy(tiny[0]), tiny[1]
    world = {**SMALL, "kinds": {"pair": 1.0}}
    pool = further.pool_of(model, processor, 2, split="train", types=(), most=1, world=world)
    (first,), (second,) = pool.asked
    assert first[0] == second[0] and first[1] == second[2] and first[2] == second[1]
    other = further.FineTuningPool(pool.pixels, pool.seen, [[(first[0], first[1], first[2])]] * 2)
    how = further.FineTuning(steps=60, batch=2, rate=1e-2)
    further.learn(model, processor, how, further.FineTuningPool(other.pixels, other.seen, [[(*first[:2], None)]] * 2), 0)
    assert further.said(model, processor, pool) == [[(True, False)], [(False, True)]]


def test_a_mismatched_image_is_that_of_the_next_row(tiny) -> None:
    model, processor = tiny
    pool = further.pool_of(model, processor, 3, split="train", types=("existence",), most=1, world=SMALL)
    own, next_ = (further.batch(processor, pool, [0, 2], shift=shift)["visual_features"] for shift in (0, 1))
    assert torch.equal(own, pool.seen[[0, 2]])
    assert torch.equal(next_, pool.seen[[1, 0]])


def test_what_is_unknown_or_missing_is_refused(lab) -> None:
    for arm, word in (
        (Vary("x", step=3), "knows objective, tuning, plugs, steps, test"),
        (Vary("x", test="y"), "is tested by 'y'"),
    ):
        with pytest.raises(TesseraError, match=word):
            TINY.measure(lab, arm, 0, 0, 1)
    with pytest.raises(TesseraError, match="knows types, world"):
        replace(TINY, tests={"a": {"kind": 1}}).measure(lab, Vary("x"), 0, 0, 1)
    with pytest.raises(TesseraError, match="or a pool of questions"):
        replace(TINY, types=()).measure(lab, Vary("x"), 0, 0, 1)
    model, processor = lab.reference("nano")
    with pytest.raises(TesseraError, match="give no 3 pictures"):
        further.pool_of(model, processor, 3, split="train", types=("change",), most=1, world=SMALL)
    pool = further.pool_of(model, processor, 1, split="train", types=("existence",), most=1, world=SMALL)
    long = further.FineTuningPool(pool.pixels, pool.seen, [pool.asked[0] * 400])
    with pytest.raises(TesseraError, match="do not fit their rows"):
        further.batch(processor, long, [0])


def test_programs_are_found_more_often_in_more_tries(tmp_path: Path) -> None:
    lab, protocol = LocalLab(cache=tmp_path, threads=0), Programs(noise=0.3)
    one, five, exact = (
        replace(protocol, noise=noise).measure(lab, Use("vpd", **options), 0, 0, 40)
        for noise, options in ((0.3, {"k": 1}), (0.3, {"k": 5}), (0.0, {"k": 1, "temperature": 0.0}))
    )
    assert one.mean("found") < five.mean("found") < exact.mean("found") == exact.mean("agrees") == 1.0
    assert one.of("found")[1].sum() == five.of("found")[1].sum() > 20
    for outcomes in (one, five, exact):
        assert outcomes.mean("explained") == pytest.approx(outcomes.mean("found") * outcomes.mean("agrees"))


def test_scales_count_what_any_of_them_answers(tiny) -> None:
    model, processor = tiny
    plug = {"m3": {"factor": 2}}
    protocol = replace(TINY, steps=30, rate=1e-2, tests={"all": ASKED, "half": {**ASKED, "plug": plug}}, scales=("all", "half"))
    train_data, pools = train_and_test_data(protocol, model, processor, 0)
    assert pools["all"] is pools["half"]
    made = trained(protocol, copy.deepcopy(model), processor, fine_tuning(protocol, Vary("x")), 0, train_data, pools)
    assert made["fixed scale"] == max(made["all: accuracy"], made["half: accuracy"]) > 0
    assert made["best scale"] >= made["fixed scale"]


def test_the_control_of_m3_reads_as_many_tokens_as_its_scales() -> None:
    from tessera.nn.reduction import share

    [claim] = [claim for *part, claim in TRAINED if part == ["tokens", "m3"]]
    scales, single = (arm.settings["plugs"] for arm in (claim.treatment, claim.control))
    pooled = [(-(-14 // plug["m3"]["factor"])) ** 2 for plug in scales]
    sampled = [int(share(torch.tensor(196), plug["uniform"]["keep"][0])) for plug in single]
    assert pooled == sampled == [196, 49, 16, 4]
