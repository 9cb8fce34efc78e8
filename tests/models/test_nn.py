"""Shared layers."""

from __future__ import annotations

import torch

from tessera.nn.segments import additive, segment_mask, segment_positions
from tessera.nn.tokens import from_grid, grid_positions

SEGMENTS = torch.tensor([[0, 0, 1, 1, 2, 2, -1]])


def test_the_mask_lets_a_question_see_the_prefix_and_itself() -> None:
    seen = segment_mask(SEGMENTS, 7)[0, 0]
    rows = [[int(c) for c in row] for row in seen.long()]
    assert rows == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 0, 0, 1, 0, 0],
        [1, 1, 0, 0, 1, 1, 0],
        [1, 1, 0, 0, 0, 0, 1],
    ]
    assert torch.equal(segment_mask(SEGMENTS, 3)[0, 0], seen[-3:])
    hidden = segment_mask(SEGMENTS, 7, torch.tensor([[0, 1, 1, 1, 1, 1, 1]]))[0, 0]
    assert not hidden[1:, 0].any()
    bias = additive(seen, torch.bfloat16)
    assert bias.dtype == torch.bfloat16
    assert bool((bias[seen] == 0).all())
    assert bool((bias[~seen] == torch.finfo(torch.bfloat16).min).all())


def test_positions_go_on_from_the_prefix() -> None:
    assert segment_positions(SEGMENTS).tolist() == [[0, 1, 2, 3, 2, 3, 0]]


def test_positions_of_a_grid_are_centres_in_reading_order() -> None:
    assert grid_positions(2, 4)[:5].tolist() == [
        [0.125, 0.25],
        [0.375, 0.25],
        [0.625, 0.25],
        [0.875, 0.25],
        [0.125, 0.75],
    ]
    tokens = from_grid(torch.zeros(3, 8, 5), (2, 4), source=1)
    assert (tokens.count, tokens.width) == (8, 5)
    assert tokens.with_features(torch.ones(3, 8, 2)).width == 2
    assert bool((tokens.source == 1).all())
