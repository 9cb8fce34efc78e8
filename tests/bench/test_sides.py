"""Turns, ratios, and what is benchmarked."""

from __future__ import annotations

import pytest

from tessera.bench.sides import interleaved, median, ratio
from tessera.bench.subject import load, scenes
from tessera.errors import UserError


def test_sides_take_turns_in_going_first_after_a_round_that_does_not_count() -> None:
    order: list[str] = []
    taken = interleaved({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert {name: len(seconds) for name, seconds in taken.items()} == {"a": 3, "b": 3}
    with pytest.raises(UserError, match="at least one round"):
        interleaved({}, 0)


def test_the_ratio_is_taken_round_by_round() -> None:
    found = ratio([2.0, 9.0, 4.0], [1.0, 3.0, 4.0])
    assert (found.median, found.low, found.high) == (2.0, 1.0, 3.0)
    assert median([0.123456789, 0.2, 0.1]) == 0.12346


def test_scenes_have_different_questions() -> None:
    rows = scenes(3, 8, 64)
    assert [len(set(questions)) for _, questions in rows] == [8, 8, 8]
    assert [[image.size for image in images] for images, _ in rows] == [[(64, 64)]] * 3


def test_the_subject_of_default_is_the_nano_shape() -> None:
    model, processor, subject = load("")
    assert subject.language_model["num_hidden_layers"] == 8
    assert subject.language_model["hidden_size"] == 224
    assert subject.dtype == "float32"
    assert subject.threads >= 1
    assert not model.training
    assert processor.tokens_per_image == subject.tokens_per_image == 196
