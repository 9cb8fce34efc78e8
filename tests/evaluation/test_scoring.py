"""Which answers count as right, and what a guess is worth."""

from __future__ import annotations

from typing import Any

import pytest

from tessera.evaluation.scoring import chance, majority, normalise, score
from tessera.world.scene import Question


def question(answer: str, op: str = "nearest", form: Any = "open", **more: Any) -> Question:
    query = (("op", op), *more.pop("query", ()))
    return Question(type="test", form=form, text="?", answer=answer, query=query, **more)


@pytest.mark.parametrize(
    ("said", "right"),
    [("dog", True), ("The Dog.", True), ("a  dog", True), (" dog ", True), ("dogs", False), ("dog cat", False), ("", False)],
)
def test_case_articles_and_the_final_stop_do_not_matter(said: str, right: bool) -> None:
    assert score(question("dog"), said).right is right


def test_an_article_alone_is_kept() -> None:
    assert normalise("A") == "a"
    assert normalise("an apple") == "apple"


def test_a_word_within_the_answer_is_not_an_article() -> None:
    assert normalise("bow and a arrow") == "bow and a arrow"


@pytest.mark.parametrize(
    ("said", "right", "overlap"),
    [
        ("10 10 29 29", True, 1.0),
        ("[10, 10, 29, 29].", True, 1.0),
        ("10 10 29 19", True, 0.5),
        ("10 10 29 18", False, 0.45),
        ("50 50 60 60", False, 0.0),
        ("top left", False, 0.0),
        ("29 29 10 10", False, 0.0),
    ],
)
def test_boxes_count_from_half_an_overlap_on(said: str, right: bool, overlap: float) -> None:
    found = score(question("10 10 29 29", op="box"), said)
    assert found.right is right
    assert found.iou == pytest.approx(overlap)


def test_only_boxes_have_an_overlap() -> None:
    assert score(question("dog"), "dog").iou is None


def test_a_box_in_a_question_about_something_else_is_compared_as_text() -> None:
    assert not score(question("dog", op="at_box"), "10 10 29 29").right


@pytest.mark.parametrize(
    ("asked", "worth"),
    [
        (question("yes", form="yesno"), 0.5),
        (question("dog", form="choice", choices=("dog", "cat", "bus")), 1 / 3),
        (question("dog", form="choice", choices=("dog", "cat", "bus", "pig")), 1 / 4),
        (question("dog", op="larger", query=(("a", 1), ("b", 2))), 0.5),
        (question("dog"), 0.0),
    ],
)
def test_chance_is_a_guess_among_the_answers_named(asked: Question, worth: float) -> None:
    assert chance(asked) == pytest.approx(worth)


def test_the_majority_is_counted_for_each_op_by_itself() -> None:
    asked = [question("red", op="tint"), question("red", op="tint"), question("blue", op="tint"), question("Noto", op="style")]
    assert majority(asked) == pytest.approx(3 / 4)
    assert majority([]) == 0.0
