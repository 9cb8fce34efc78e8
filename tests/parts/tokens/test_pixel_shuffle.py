"""Space to depth."""

from __future__ import annotations

import pytest
import torch

from tessera.errors import UserError
from tessera.nn.tokens import from_grid
from tessera.parts.tokens.pixel_shuffle import PixelShuffle


def test_every_square_becomes_one_token_and_nothing_is_lost() -> None:
    features = torch.arange(2 * 24 * 3, dtype=torch.float32).view(2, 24, 3)
    out = PixelShuffle(PixelShuffle.Config(factor=2), 3, (4, 6))(from_grid(features, (4, 6)))
    raster = features.view(2, 4, 6, 3)
    assert out.grid == (2, 3)
    for row in range(2):
        for column in range(3):
            square = raster[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].reshape(2, -1)
            assert torch.equal(out.features[:, row * 3 + column], square)
    torch.testing.assert_close(out.positions[0, 0], torch.tensor([1 / 6, 1 / 4]))


def test_what_cannot_be_cut_is_refused() -> None:
    with pytest.raises(UserError, match="5 x 4 cannot be cut into squares of 2"):
        PixelShuffle(PixelShuffle.Config(factor=2), 3, (5, 4))
    tokens = from_grid(torch.zeros(1, 16, 3), (4, 4))
    tokens.grid = None
    with pytest.raises(UserError, match="needs a full grid"):
        PixelShuffle(PixelShuffle.Config(), 3, (4, 4))(tokens)
