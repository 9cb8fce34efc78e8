"""BEAF's numbers against a plain count of the same answers, and its items."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.config import build
from tessera.errors import UserError
from tessera.evaluation.items import Item
from tessera.parts.benchmarks.beaf import BEAF, Asked, numbers, outcome
from tessera.world import WorldConfig
from tessera.world.rng import Rng

WORLD = WorldConfig(split="val", kinds={"scene": 1.0}, things=(2, 4), width=64, height=64)


@pytest.fixture(scope="module")
def bench() -> BEAF:
    return BEAF(BEAF.Config(scenes=8, absent=2, world=WORLD))


@pytest.fixture(scope="module")
def items(bench: BEAF) -> list[Item]:
    return bench.items()


def naive(items: list[Item], said: list[list[str]]) -> dict[str, float]:
    """The published counting, over a flat table of rows."""
    rows = []
    for item, texts in zip(items, said, strict=True):
        for q, text in zip(item.questions, texts, strict=True):
            rows.append(
                {**dict(q.query), "right": (text == "yes") == (q.answer == "yes"), "yes": text == "yes", "truth": q.answer}
            )
    first = {(r["scene"], r["concept"]): r for r in rows if r["removed"] == -1}
    count = dict.fromkeys(("TU", "IG", "SBp", "SBn", "ID"), 0)
    removed = untouched = 0
    for r in (r for r in rows if r["removed"] != -1):
        before = first[r["scene"], r["concept"]]
        if r["removed"] == r["concept"]:
            removed += 1
            name = {(True, False): "TU", (False, True): "IG", (True, True): "SBp", (False, False): "SBn"}
            count[name[bool(before["yes"]), bool(r["yes"])]] += 1
        else:
            untouched += 1
            count["ID"] += before["right"] != r["right"]
    found = {k: v / (untouched if k == "ID" else removed) for k, v in count.items()}
    found["accuracy"] = sum(r["right"] for r in rows) / len(rows)
    said_yes = [r for r in rows if r["yes"]]
    are_yes = [r for r in rows if r["truth"] == "yes"]
    found["precision"] = sum(r["right"] for r in said_yes) / len(said_yes)
    found["recall"] = sum(r["right"] for r in are_yes) / len(are_yes)
    found["F1"] = 2 * found["precision"] * found["recall"] / (found["precision"] + found["recall"])
    found["F1 of TU and ID"] = 2 * found["TU"] * (1 - found["ID"]) / (found["TU"] + 1 - found["ID"])
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_numbers_equal_a_plain_count(bench: BEAF, items: list[Item], seed: int) -> None:
    rng = Rng("answers", seed)
    said = [[q.answer if rng.chance(0.7) else rng.choice(("yes", "no")) for q in item.questions] for item in items]
    found = bench.score(items, said)
    for name, value in naive(items, said).items():
        assert found[name] == pytest.approx(value), name
        assert found.numbers[name].low <= found[name] <= found.numbers[name].high
    assert sum(found[k] for k in ("TU", "IG", "SBp", "SBn")) == pytest.approx(1)
    assert found.n == sum(len(i.questions) for i in items)


def test_an_oracle_and_a_constant(bench: BEAF, items: list[Item]) -> None:
    said = {how: [[how or q.answer for q in item.questions] for item in items] for how in ("", "yes", "no")}
    assert bench.score(items, said[""])["F1 of TU and ID"] == 1
    assert (bench.score(items, said["yes"])["SBp"], bench.score(items, said["no"])["SBn"]) == (1, 1)


def test_one_thing_is_gone_and_all_else_is_as_before(items: list[Item]) -> None:
    original = None
    for item in items:
        gone = item.questions[0].asked("removed")
        if gone == -1:
            original = item
            continue
        assert original is not None and item.sample.index == original.sample.index
        before, after = original.sample.frames[0], item.sample.frames[0]
        assert [t for t in before.things if t.concept != gone] == list(after.things)
        assert before.background == after.background
        assert [q.text for q in original.questions] == [q.text for q in item.questions]
        truth = {t.concept for t in after.things}
        assert [q.answer for q in item.questions] == ["yes" if q.asked("concept") in truth else "no" for q in item.questions]
        assert not np.array_equal(original.sample.images()[0], item.sample.images()[0])


@pytest.mark.parametrize(
    ("said", "truth", "expected"),
    [
        ("Yes.", "yes", "TP"),
        ("yes, it is", "no", "FP"),
        ("No", "no", "TN"),
        ("There is no dog", "yes", "FN"),
        ("dog", "yes", "FN"),
        ("", "no", "FP"),
    ],
)
def test_answers_are_read(said: str, truth: str, expected: str) -> None:
    assert outcome(said, truth) == expected


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="before"):
        numbers([Asked(0, 3, 3, "TN")])
    for bad in ({"scenes": 0}, {"absent": -1}, {"removals": "x"}, {"scene": 3}):
        with pytest.raises(UserError):
            build(BEAF.Config, bad)
    alone = WorldConfig(split="val", kinds={"scene": 1.0}, things=(1, 1))
    with pytest.raises(UserError, match="two or more"):
        BEAF(BEAF.Config(scenes=1, world=alone)).items()
