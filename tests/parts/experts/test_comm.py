"""COMM: its layers, shares and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError

from tessera.errors import UserError
from tessera.nn.tokens import VisualTokens, from_grid, resample
from tessera.parts.experts.comm import COMM


def seen(width: int, grid: tuple[int, int], count: int, batch: int = 2) -> VisualTokens:
    layers = tuple(torch.randn(batch, grid[0] * grid[1], width) for _ in range(count))
    tokens = from_grid(layers[-1], grid)
    tokens.levels = layers
    return tokens


def made(**options: Any) -> COMM:
    return COMM(COMM.Config(**options), [8, 12], [(4, 4), (2, 2)], [4, 8])


@pytest.mark.parametrize(("shares", "counts"), [((1.0, 0.25), [4, 2]), ((0.5,), [2, 4]), ((0.01, 1.0), [1, 8])])
def test_shares_count_layers_from_the_last(shares: tuple[float, ...], counts: list[int]) -> None:
    part = made(shares=shares)
    assert part.counts == counts
    sets = [seen(8, (4, 4), 4), seen(12, (2, 2), 8)]
    before = part(sets).features
    for tokens, count in zip(sets, counts, strict=True):
        assert tokens.levels is not None
        hidden = [torch.full_like(layer, torch.nan) for layer in tokens.levels[:-count]]
        tokens.levels = (*hidden, *tokens.levels[-count:])
    assert torch.equal(part(sets).features, before)


@pytest.mark.parametrize("merge", ["single", "mean_half", "mean", "layerscale"])
def test_plain_merges_are_means(merge: Any) -> None:
    part = made(merge=merge, align=0, shares=(1.0, 1.0))
    sets = [seen(8, (4, 4), 4), seen(12, (2, 2), 8)]
    wanted = []
    for tokens in sets:
        assert tokens.levels is not None and tokens.grid is not None
        own = torch.stack(tokens.levels)
        mean = {"single": own[-1], "mean_half": own[len(own) // 2 :].mean(0)}.get(merge, own.mean(0))
        wanted.append(resample(mean, tokens.grid, (4, 4)))
    torch.testing.assert_close(part(sets).features, torch.cat(wanted, -1), rtol=0, atol=1e-6)


def test_gradients_reach_every_parameter() -> None:
    part = made()
    part([seen(8, (4, 4), 4), seen(12, (2, 2), 8)]).features.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in part.parameters())


def test_fewer_layers_and_irregular_tokens_are_refused() -> None:
    with pytest.raises(UserError, match="merges 2 layers of encoder 1, but was given 1"):
        made()([seen(8, (4, 4), 4), seen(12, (2, 2), 1)])
    tokens = seen(8, (4, 4), 4)
    tokens.grid = None
    with pytest.raises(UserError, match="tokens of encoder 0 are not one"):
        made()([tokens, seen(12, (2, 2), 8)])


@pytest.mark.parametrize("wrong", [{"shares": (0.0,)}, {"shares": ()}, {"align": -1}])
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(StrictDataclassClassValidationError):
        COMM.Config(**wrong)
