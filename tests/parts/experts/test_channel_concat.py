"""Channel concatenation."""

from __future__ import annotations

import pytest
import torch

from tessera.errors import UserError
from tessera.nn.tokens import from_grid
from tessera.parts.experts.channel_concat import ChannelConcat, resample
from tessera.parts.experts.single import Single


def test_equal_grids_are_concatenated_place_by_place() -> None:
    a, b = torch.randn(2, 16, 3), torch.randn(2, 16, 5)
    part = ChannelConcat(ChannelConcat.Config(), [3, 5], [(4, 4), (4, 4)])
    out = part([from_grid(a, (4, 4)), from_grid(b, (4, 4))])
    assert torch.equal(out.features, torch.cat([a, b], -1))
    assert out.grid == (4, 4)


@pytest.mark.parametrize("grid", [(2, 2), (8, 8), (6, 3)])
def test_other_grids_are_resampled_to_the_first(grid: tuple[int, int]) -> None:
    rows, columns = grid
    ramp = (torch.arange(rows)[:, None] + 0.5).expand(rows, columns).reshape(1, -1, 1) / rows
    out = resample(ramp, grid, (4, 4))[0, :, 0].view(4, 4)
    expected = (torch.arange(4) + 0.5) / 4
    inner = slice(1, 3)  # at the border bilinear sampling repeats the edge
    torch.testing.assert_close(out[inner, 0], expected[inner], rtol=0, atol=0.02)
    part = ChannelConcat(ChannelConcat.Config(), [1, 1], [(4, 4), grid])
    assert part([from_grid(torch.zeros(1, 16, 1), (4, 4)), from_grid(ramp, grid)]).features.shape == (
        1,
        16,
        2,
    )


def test_irregular_tokens_and_too_many_encoders_are_refused() -> None:
    tokens = from_grid(torch.zeros(1, 16, 2), (4, 4))
    tokens.grid = None
    with pytest.raises(UserError, match="tokens of encoder 0 are not one"):
        ChannelConcat(ChannelConcat.Config(), [2], [(4, 4)])([tokens])
    with pytest.raises(UserError, match="takes one encoder, 2 are configured"):
        Single(Single.Config(), [2, 2], [(4, 4), (4, 4)])
