"""A thousand questions of every type, each worked out anew by a checker that shares no code with the question makers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from tests.world.checker import OPS, check
from tests.world.measured import Facts

from tessera.world import World, WorldConfig
from tessera.world.dataset import Sample
from tessera.world.questions import TYPES
from tessera.world.scene import KINDS, Question

EACH = 1000
WORLDS = (
    WorldConfig(split="test"),
    WorldConfig(split="train", seed=1, width=96, height=144, pool="all", combinations="all"),
    WorldConfig(split="val", seed=2, width=160, height=96, pool="everyday", combinations="held-out", frames=(2, 6)),
)
SHOWN = 6


@pytest.fixture(scope="module")
def examined() -> tuple[Counter[str], dict[str, list[str]], list[str]]:
    """How many questions of each type were checked, what is wrong with them, what is wrong with the samples' truth."""
    worlds = [World(w) for w in WORLDS]
    seen, faults, drawing = Counter[str](), {name: list[str]() for name in TYPES}, list[str]()
    gives: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    index = 0
    while min(seen[name] for name in TYPES) < EACH and index < 40 * EACH:
        wanted = {name for name in TYPES if seen[name] < EACH}
        useful = [k for k in KINDS if index < 20 * len(KINDS) or any(gives[k][name] for name in wanted)]
        world, kind = worlds[index % len(worlds)], useful[index // len(worlds) % len(useful)]
        sample = world.sample(index, kind)
        questions = [q for q in sample.questions() if q.type in wanted]
        gives[kind].update(q.type for q in questions)
        if questions:
            facts = Facts(sample)
            drawing += [f"{kind} {index}: {fault}" for fault in facts.faults]
        for question in questions:
            seen[question.type] += 1
            said = f"{world.config.split}:{index} {kind}: {question.text} -> {question.answer}"
            faults[question.type] += [f"{said}: {fault}" for fault in check(question, facts)]
        index += 1
    return seen, faults, drawing


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TYPES))
def test_every_answer_is_the_only_right_one(name: str, examined: tuple[Counter[str], dict[str, list[str]], Any]) -> None:
    seen, faults, _ = examined
    assert seen[name] >= EACH
    assert not faults[name], f"{len(faults[name])} faults:\n" + "\n".join(faults[name][:SHOWN])


@pytest.mark.slow
def test_the_stated_boxes_and_visible_shares_are_those_of_the_drawing(examined: tuple[Any, Any, list[str]]) -> None:
    drawing = examined[2]
    assert not drawing, f"{len(drawing)} faults:\n" + "\n".join(drawing[:SHOWN])


# The checker itself can say no


def example(op: str) -> tuple[Question, Sample]:
    """The first question with an op, in the test split."""
    world = World(split="test")
    kinds = {"read": "text", "value": "chart", "changed": "pair", "moved": "clip", "first": "clip"}
    for index in range(400):
        sample = world.sample(index, kinds.get(op, "scene"))
        for question in sample.questions():
            if question.asked("op") == op:
                return question, sample
    raise AssertionError(f"no question with op {op}")


OTHER = {
    "exists": None, "count": "9", "total": "13", "beside": "nothing", "where": "nowhere", "nearest": "nothing",
    "largest": "nothing", "tint": "grey", "at_region": "nothing", "count_beside": "12", "read": "????", "value": "1000",
    "changed": "nothing", "moved": "away", "first": "nothing", "box": "00 00 01 01",
}  # fmt: skip


@pytest.mark.parametrize("op", OTHER)
def test_a_wrong_answer_is_noticed(op: str) -> None:
    question, sample = example(op)
    facts = Facts(sample)
    assert check(question, facts) == []
    wrong = OTHER[op] or {"yes": "no", "no": "yes"}[question.answer]
    assert check(replace(question, answer=wrong), facts)


def test_a_distractor_that_is_right_is_noticed() -> None:
    question, sample = example("total")
    assert any("right too" in f for f in check(replace(question, distractors=(question.answer, "12")), Facts(sample)))


def test_choices_without_the_answer_are_noticed() -> None:
    question, sample = example("largest")
    choices = ("a", "b", "c")
    told = replace(question, form="choice", choices=choices, text=f"{question.text} Choose: a, b, c.")
    assert any("choices" in f for f in check(told, Facts(sample)))


def test_evidence_that_is_missing_or_of_nothing_is_noticed() -> None:
    question, sample = example("largest")
    assert any("lacks" in f for f in check(replace(question, evidence=()), Facts(sample)))
    strange = replace(question, evidence=(*question.evidence, (0, (0.4, 0.4, 0.41, 0.41))))
    assert any("of nothing" in f for f in check(strange, Facts(sample)))
    outside = replace(question, evidence=(*question.evidence, (3, (0.0, 0.0, 1.0, 1.0))))
    assert any("outside" in f for f in check(outside, Facts(sample)))


def test_a_text_about_something_else_is_noticed() -> None:
    question, sample = example("nearest")
    assert any("does not say" in f for f in check(replace(question, text="Which object is nearest?"), Facts(sample)))


def test_a_margin_that_is_too_small_is_noticed() -> None:
    question, sample = example("nearest")
    facts = Facts(sample)
    near = next(s for s in facts.frames[0] if s.name == question.answer)
    rival = next(
        s
        for s in facts.frames[0]
        if s.name not in (question.answer, question.text) and s.record.concept != question.asked("concept")
    )
    facts.frames[0][facts.frames[0].index(rival)] = replace(rival, x=near.x + 0.005, y=near.y)
    assert any("can be defended" in f for f in check(question, facts))


def test_every_op_of_the_questions_is_known_to_the_checker() -> None:
    world = World(split="test")
    asked = {str(q.asked("op")) for kind in KINDS for i in range(60) for q in world.sample(i, kind).questions()}
    assert asked <= OPS.keys()
