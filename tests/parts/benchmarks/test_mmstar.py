"""MMStar's selection, metrics and reading of answers, with scripted judges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from tessera.config import build
from tessera.errors import UserError
from tessera.evaluation.answering import Answer
from tessera.evaluation.items import Item
from tessera.parts.benchmarks.mmstar import CAPABILITIES, MMStar, gain, leakage, offered, read_letter, turned
from tessera.world import WorldConfig
from tessera.world.scene import Question


class Knows:
    """Answers blind what its book holds, by question without options, else the first option."""

    def __init__(self, items: Sequence[Item]) -> None:
        self.book = {i.questions[0].text.split(" Choose: ")[0]: i.questions[0].answer for i in items}

    def answer_batch(self, rows: Sequence[Any], max_new_tokens: int) -> list[list[Answer]]:
        assert not any(len(images) for images, _ in rows), "a blind judge is shown nothing"
        found = []
        for _, questions in rows:
            split = [q.split(" Choose: ") for q in questions]
            found.append([Answer(self.book.get(text, options.split(", ")[0])) for text, options in split])
        return found


@pytest.fixture(scope="module")
def items() -> list[Item]:
    world = WorldConfig(split="val", kinds={"scene": 0.7, "text": 0.1, "chart": 0.2}, things=(2, 5), width=64, height=64)
    return MMStar(MMStar.Config(per_axis=1, world=world)).items()


def test_every_axis_has_its_candidates_with_four_options(items: list[Item]) -> None:
    assert len(CAPABILITIES) == 6 and sum(map(len, CAPABILITIES.values())) == 18
    assert sorted(i.questions[0].type for i in items) == sorted(a for axes in CAPABILITIES.values() for a in axes)
    for item in items:
        (q,) = item.questions
        assert len(set(q.choices)) == 4 and q.answer in q.choices and q.text.endswith(f"Choose: {', '.join(q.choices)}.")


def planted(item: Item) -> Item:
    """A question that says its answer, beside the item's picture."""
    names = item.questions[0].choices
    text = f"The {names[0]} is above the {names[1]}. What is above the {names[1]}?"
    return Item(item.sample, (offered(Question(type="planted", form="choice", text=text, answer=names[0]), names, False),))


def test_judges_drop_what_they_know_and_keep_what_they_guess(items: list[Item]) -> None:
    false = [planted(item) for item in items[:12]]
    bench = MMStar(MMStar.Config(), [*items, *false])
    hits = bench.hits([], [Knows(false)])
    assert hits[len(items) :] == [1.0] * 12
    # Whoever always names the first option is right in one of four orders.
    assert hits[: len(items)] == [0.25] * len(items)
    assert bench.select([], [Knows(false)]).items() == items
    with pytest.raises(UserError, match="every question blind"):
        MMStar(MMStar.Config(), false).select([], [Knows(false)])
    with pytest.raises(UserError, match="at least one judge"):
        bench.select([])


def test_scores_per_capability_and_axis(items: list[Item]) -> None:
    bench = MMStar(MMStar.Config(), items)
    said = [[i.questions[0].answer if i.questions[0].type in CAPABILITIES["math"] else "?"] for i in items]
    found = bench.score(items, said)
    assert found["math"] == found["math/count"] == 1 and found["reading"] == 0 and found["score"] == pytest.approx(3 / 18)
    other = bench.score(items, [[i.questions[0].answer] for i in items])
    assert gain(other, found).value == pytest.approx(15 / 18)
    assert leakage(found, other).value == 0 and leakage(other, found).value == pytest.approx(15 / 18)
    with pytest.raises(UserError, match="different questions"):
        gain(found, bench.score(items[:4], said[:4]))


def test_balance(items: list[Item]) -> None:
    counts = [i.questions[0].type for i in MMStar(MMStar.Config(), [*items, *items]).balanced(4).items()]
    assert len(counts) == 24 and counts[:4] == ["background", "total", "category_largest", "background"]


@pytest.mark.parametrize(
    ("said", "letter"),
    [
        ("B", "B"),
        ("b) dog", "B"),
        ("(D) cat", "D"),
        ("Option A", "A"),
        ("The answer is C.", "C"),
        ("Cat", "C"),
        ("E", ""),
        ("is A", ""),
        ("", ""),
    ],
)
def test_letters_are_read_by_the_published_rules(said: str, letter: str) -> None:
    assert read_letter(said) == letter


def test_letters_ask_and_turn() -> None:
    world = WorldConfig(split="val", kinds={"scene": 1.0}, things=(2, 5), width=64, height=64)
    (first, *_) = MMStar(MMStar.Config(per_axis=1, letters=True, world=world)).items()
    q = first.questions[0]
    moved = turned(q, 1, True)
    assert "Options: A: " in q.text and q.answer in "ABCD"
    assert moved.choices == (*q.choices[1:], q.choices[0])
    assert moved.choices["ABCD".index(moved.answer)] == q.choices["ABCD".index(q.answer)]
    assert turned(moved, 3, True) == q


def test_bad_options_are_refused() -> None:
    for bad in ({"options": 5}, {"trials": 0}, {"most": 1.0}, {"per_axis": "many"}, {"judges": 8}):
        with pytest.raises(UserError):
            build(MMStar.Config, bad)
