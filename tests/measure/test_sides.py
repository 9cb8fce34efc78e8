"""Turns and ratios."""

from __future__ import annotations

import pytest

from tessera.errors import UserError
from tessera.measure.sides import interleaved, median, ratio


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
