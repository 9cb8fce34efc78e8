"""AIM's merging and PageRank, against loops written from their definition."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tessera.config import build
from tessera.errors import UserError
from tessera.parts.tokens.aim import AIM, falling, logits_of, merged, merged_to, page_rank


def merged_by_hand(tokens: list[Tensor], count: int) -> tuple[list[Tensor], list[int]]:
    """One round on one image, token by token, in double precision."""
    even, odd = range(0, len(tokens), 2), range(1, len(tokens), 2)

    def cosine(a: Tensor, b: Tensor) -> float:
        return float(a @ b) / max(float(a.norm()), 1e-12) / max(float(b.norm()), 1e-12)

    pairs = []
    for a in even if len(odd) else ():
        target = max(odd, key=lambda b: (cosine(tokens[a], tokens[b]), -b))
        pairs.append((-cosine(tokens[a], tokens[target]), a, target))
    chosen = sorted(pairs)[: min(count, len(tokens) // 2)]
    into: dict[int, list[int]] = {b: [] for b in odd}
    for _, a, target in chosen:
        into[target].append(a)
    gone = {a for _, a, _ in chosen}
    left = [place for place in range(len(tokens)) if place not in gone]
    means = [torch.stack([tokens[p], *(tokens[a] for a in into.get(p, []))]).mean(0) for p in left]
    return means, left


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 14), st.integers(0, 9), st.integers(0, 10**6))
def test_a_round_of_merging_equals_the_loop(length: int, count: int, seed: int) -> None:
    tokens = torch.randn(2, length, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found, places = merged(tokens, count)
    for image in range(2):
        means, left = merged_by_hand(list(tokens[image]), count)
        assert places[image].tolist() == left
        torch.testing.assert_close(found[image], torch.stack(means))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=12), st.integers(0, 6))
def test_of_equally_alike_tokens_the_earlier_is_merged_into_the_earlier(kinds: list[int], count: int) -> None:
    # Tokens along few axes: most similarities are equal.
    tokens = torch.eye(3, dtype=torch.float64)[torch.tensor(kinds)]
    found, places = merged(tokens[None], count)
    means, left = merged_by_hand(list(tokens), count)
    assert places[0].tolist() == left
    torch.testing.assert_close(found[0], torch.stack(means))


@given(st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_rounds_end_at_the_goal_with_places_in_order(length: int, goal: int) -> None:
    tokens = torch.randn(2, length, 4, generator=torch.Generator().manual_seed(length))
    found, places = merged_to(tokens, goal)
    assert found.shape == (2, min(goal, length), 4)
    assert bool((places.diff(dim=1) > 0).all())
    assert int(places.max()) < length
    if goal >= length:
        assert found is tokens


def test_no_sizes_are_kept_from_round_to_round() -> None:
    # The second round averages the first one's means as if each were one token: 3/4, 1/4, not thirds.
    tokens = torch.tensor([[[1.0, 0.1], [1.0, 0.0], [-1.0, 0.0], [1.0, -0.1]]])
    found, _ = merged_to(tokens, 1)
    first, _ = merged(tokens, 2)
    torch.testing.assert_close(found[0, 0], first[0].mean(0))


def test_merging_carries_gradients() -> None:
    tokens = torch.randn(1, 6, 3, requires_grad=True)
    merged_to(tokens, 2)[0].sum().backward()
    assert tokens.grad is not None and bool((tokens.grad != 0).all())


def causal(heads: int, length: int, padding: int, seed: int) -> tuple[Tensor, Tensor]:
    logits = torch.randn(1, heads, length, length, generator=torch.Generator().manual_seed(seed))
    real = (torch.arange(length) >= padding)[None]
    hidden = torch.ones(length, length, dtype=torch.bool).triu(1) | ~real
    return logits.masked_fill(hidden, torch.finfo(torch.float32).min), real


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(2, 9), st.integers(0, 1), st.integers(1, 6), st.integers(0, 10**6))
def test_page_rank_is_the_uniform_distribution_times_a_power_of_the_matrix(
    heads: int, length: int, padding: int, steps: int, seed: int
) -> None:
    logits, real = causal(heads, length, padding, seed)
    found = page_rank(logits, real, 0.1, steps)
    total = torch.zeros(length, dtype=torch.float64)
    for head in range(heads):
        walk = torch.zeros(length, length, dtype=torch.float64)
        for query in range(padding, length):
            seen = [float(logits[0, head, query, key]) for key in range(padding, query + 1)]
            weights = [math.exp((logit - max(seen)) / 0.1) for logit in seen]
            walk[query, padding : query + 1] = torch.tensor(weights, dtype=torch.float64) / sum(weights)
        start = real[0].double() / (length - padding)
        total += (start @ torch.linalg.matrix_power(walk, steps)) ** 2
    torch.testing.assert_close(found[0].double(), (total / heads).sqrt(), rtol=1e-4, atol=1e-6)
    assert not bool(found[0, :padding].any())


def test_logits_agree_however_the_mask_is_given() -> None:
    query, key = torch.randn(2, 4, 6, 8), torch.randn(2, 2, 9, 8)  # a static cache hands over all its room
    real = torch.tensor([[True] * 6, [False] * 2 + [True] * 4])
    lowest = torch.finfo(torch.float32).min
    seen = torch.ones(6, 6, dtype=torch.bool).tril() & real[:, None]
    plain = logits_of(query, key, None, None, real)
    assert torch.equal(plain, logits_of(query, key, seen[:, None], None, real))
    added = torch.zeros(2, 1, 6, 9).masked_fill(~torch.nn.functional.pad(seen, (0, 3))[:, None], lowest)
    assert torch.allclose(plain.softmax(-1)[0], logits_of(query, key, added, 8**-0.5, real).softmax(-1)[0])
    for head in range(4):
        expected = query[0, head] @ key[0, head // 2, :6].T * 8**-0.5
        torch.testing.assert_close(plain[0, head].tril(), expected.tril())


def test_the_schedule_is_the_authors_one_and_stretches() -> None:
    shares = falling(28)
    official = {layer: max(0.0, 1 - (layer - 14 + 1) * 0.125) if layer >= 14 else 1.0 for layer in range(28)}
    assert shares == {layer + 1: official[layer] for layer in range(14, 22)}
    assert falling(12) == {7: pytest.approx(2 / 3), 8: pytest.approx(1 / 3), 9: 0.0}
    assert falling(6, 0, 2) == {1: 0.5, 2: 0.0}
    assert falling(6, 4, 8) == {5: 0.75}


def test_options_that_make_no_sense_are_refused() -> None:
    for options in ({"merge": 0.0}, {"merge": 1.5}, {"temperature": 0.0}, {"steps": 0}):
        with pytest.raises(UserError, match=next(iter(options))):
            build(AIM.Config, options)
    with pytest.raises(UserError, match="start is a layer from 0 to 4"):
        AIM(build(AIM.Config, {"start": 5})).shares(6)
    with pytest.raises(UserError, match="stop must lie behind start"):
        AIM(build(AIM.Config, {"start": 3, "stop": 3})).shares(6)
