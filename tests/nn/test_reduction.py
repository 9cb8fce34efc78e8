"""Choosing tokens, against loops over tokens; ties go to the earlier one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tessera.errors import UserError
from tessera.nn.reduction import (
    check_layers,
    check_shares,
    dispersed,
    group_sizes,
    hashed,
    keep_share,
    keep_top,
    share,
    stages,
    top_by_group,
)

# Few different scores, so that there are many ties; -inf and inf too.
SCORES = st.sampled_from([-torch.inf, -1.0, 0.0, 0.0, 0.5, 2.0, torch.inf])


@st.composite
def scored(draw: st.DrawFn) -> tuple[list[list[float]], list[list[int]]]:
    """Scores and groups (-1: none, or 0 to 2) of up to 3 rows."""
    rows, length = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    row = st.lists(SCORES, min_size=length, max_size=length)
    groups = st.lists(st.integers(-1, 2), min_size=length, max_size=length)
    return draw(st.lists(row, min_size=rows, max_size=rows)), draw(st.lists(groups, min_size=rows, max_size=rows))


def best(places: list[int], score: list[float], count: int) -> set[int]:
    """The `count` of `places` with the highest scores, of equal ones the earlier."""
    return set(sorted(places, key=lambda place: (-score[place], place))[:count])


@settings(max_examples=80)
@given(scored(), st.integers(0, 10))
def test_keep_top_equals_sorting_by_hand(given_: tuple[list[list[float]], list[list[int]]], count: int) -> None:
    scores, groups = given_
    candidates = torch.tensor(groups) >= 0
    counts = torch.tensor([max(0, count - row) for row in range(len(scores))])
    found = keep_top(torch.tensor(scores), candidates, counts)
    for row, score in enumerate(scores):
        places = [place for place, group in enumerate(groups[row]) if group >= 0]
        chosen = best(places, score, int(counts[row]))
        assert found[row].tolist() == [place in chosen or place not in places for place in range(len(score))]


@settings(max_examples=80)
@given(scored(), st.lists(st.integers(0, 4), min_size=9, max_size=9))
def test_top_by_group_equals_sorting_each_group_by_hand(
    given_: tuple[list[list[float]], list[list[int]]], wanted: list[int]
) -> None:
    scores, groups = given_
    count = torch.tensor(wanted).view(3, 3)[: len(scores)]
    found = top_by_group(torch.tensor(scores), torch.tensor(groups), count)
    for row, score in enumerate(scores):
        chosen: set[int] = set()
        for group in range(3):
            chosen |= best([p for p, g in enumerate(groups[row]) if g == group], score, int(count[row, group]))
        assert found[row].nonzero().flatten().tolist() == sorted(chosen)
    sizes = group_sizes(torch.tensor(groups), 3)
    assert sizes.tolist() == [[row.count(group) for group in range(3)] for row in groups]


def test_keep_share_counts_the_tokens_of_the_prompt_not_those_that_are_left() -> None:
    group = torch.tensor([[-1, 0, 0, 0, 0, 1, 1, -1]])
    score = torch.tensor([[9.0, 1, 2, 3, 4, 5, 6, 9]])
    index = torch.tensor([[0, 2, 3, 5, 6, 7, 7]])  # logical places; the last one is a filler
    present = torch.tensor([[True] * 6 + [False]])
    keep = keep_share(score.gather(1, index), group, index, present, 0.5)
    assert keep.tolist() == [[True, True, True, False, True, True, True]]  # 2 of 4, 1 of 2
    nothing = keep_share(score.gather(1, index), torch.full_like(group, -1), index, present, 0.0)
    assert bool(nothing.all())


@given(st.integers(0, 5000), st.sampled_from([0.0, 0.1, 0.125, 0.25, 0.29, 1 / 3, 0.5, 0.7, 0.9, 1.0]))
def test_share_is_what_python_makes_of_it(count: int, ratio: float) -> None:
    assert int(share(torch.tensor(count), ratio)) == int(count * ratio)


def test_hashed_is_scattered_and_the_same_everywhere() -> None:
    number = torch.arange(4096)
    found = hashed(number, 0)
    assert found[:4].tolist() == [hash_by_hand(n, 0) for n in range(4)]
    assert hashed(number, 2**40 + 7)[5].item() == hash_by_hand(5, 2**40 + 7)
    assert int(found.min()) >= 0 and int(found.max()) < 2**24
    halves = (found[:2048] < 2**23).float().mean()
    assert 0.45 < float(halves) < 0.55
    # Two seeds choose independently: a quarter each share a sixteenth.
    a, b = (set(hashed(number, seed).argsort()[:1024].tolist()) for seed in (1, 2))
    assert 200 < len(a & b) < 312


def hash_by_hand(number: int, seed: int) -> int:
    mixed = (number + (seed * 0x9E3779B9) % 2**32 + 1) % 2**32
    mixed = (mixed ^ (mixed >> 16)) * 0x7FEB352D % 2**32
    mixed = (mixed ^ (mixed >> 15)) * 0x846CA68B % 2**32
    return (mixed ^ (mixed >> 16)) >> 8


def places(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    place = torch.arange(rows * columns)
    return place // columns, place % columns


@pytest.mark.parametrize("level", [1, 2, 3])
def test_dispersed_keeps_every_second_row_and_column_at_a_quarter(level: int) -> None:
    row, column = places(16, 16)
    step = 2**level
    chosen = dispersed(row, column).argsort()[: 256 // step**2]
    assert bool((row[chosen] % step == 0).all()) and bool((column[chosen] % step == 0).all())


@settings(max_examples=60)
@given(st.integers(1, 30), st.integers(1, 30), st.floats(0.05, 0.95))
def test_dispersed_leaves_no_place_far_from_what_stays(rows: int, columns: int, ratio: float) -> None:
    row, column = places(rows, columns)
    key = dispersed(row, column)
    assert len(key.unique()) == rows * columns
    assert int(key.max()) < 2**24
    count = max(1, int(rows * columns * ratio))
    chosen = key.argsort()[:count]
    across = (row[:, None] - row[chosen]).abs().maximum((column[:, None] - column[chosen]).abs())
    # The lattice that is filled to the last: of step s with s^2 >= places / count, at most the step above.
    step = 1
    while -(-rows // step) * -(-columns // step) > count:
        step *= 2
    assert int(across.amin(1).max()) < step


def test_shares_and_layers_are_checked() -> None:
    check_shares((1.0, 0.5, 0.5, 0.0))
    check_layers((0, 3))
    for keep in ((), (1.1,), (-0.1,), (0.5, 0.6)):
        with pytest.raises(ValueError, match="keep"):
            check_shares(keep)
    for layers in ((), (-1,), (3, 3), (3, 2)):
        with pytest.raises(ValueError, match="layers"):
            check_layers(layers)
    assert stages("x", (1.0, 0.5), (2, 4), 6) == {4: 0.5}
    with pytest.raises(UserError, match="x: layer 6 does not exist; the host has layers 0 to 5"):
        stages("x", (0.5,), (6,), 6)
    with pytest.raises(UserError, match="2 shares and layers 1"):
        stages("x", (0.5, 0.5), (3,), 6)
