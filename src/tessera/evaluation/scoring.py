"""Scores of answers, and the accuracy that needs no image: guessing, and the most frequent answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from tessera.world.questions import iou, parse_box
from tessera.world.scene import Question

IOU = 0.5
"""A box is right from this intersection over union on."""
_ARTICLES = ("a", "an", "the")


@dataclass(frozen=True, slots=True)
class Score:
    """`iou` in 0..1 for questions whose answer is a box (0 for a text that is none), else None."""

    right: bool
    iou: float | None = None


def score(question: Question, said: str) -> Score:
    """Boxes by intersection over union, everything else by equality after `normalise`."""
    truth = parse_box(question.answer) if question.asked("op") == "box" else None
    if truth is None:
        return Score(normalise(said) == normalise(question.answer))
    found = parse_box(said)
    overlap = 0.0 if found is None else iou(found, truth)
    return Score(overlap >= IOU, overlap)


def normalise(text: str) -> str:
    """Lower case, single spaces, no final stop, no article in front: "The dog." is "dog"."""
    words = text.lower().strip().rstrip(".").split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in _ARTICLES else words)


def chance(question: Question) -> float:
    """The accuracy of a guess among the answers that the question names: choices, yes and no, "the dog or the cat"; else 0."""
    if question.choices:
        return 1 / len(question.choices)
    named = dict(question.query)
    return 0.5 if question.form == "yesno" or {"a", "b"} <= named.keys() else 0.0


def majority(questions: Sequence[Question]) -> float:
    """The accuracy of always giving the answer that is most frequent among these questions for the same "op" of the query.

    It is fitted to the very questions it is measured on, so it is an upper bound for a guesser that knows the frequencies.
    """
    answers: dict[object, Counter[str]] = {}
    for question in questions:
        answers.setdefault(question.asked("op"), Counter())[normalise(question.answer)] += 1
    return sum(max(counts.values()) for counts in answers.values()) / max(1, len(questions))
