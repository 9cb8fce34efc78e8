"""Prefix coupling."""

from __future__ import annotations

import pytest
import torch

from tessera.errors import UserError
from tessera.parts.couplings.prefix import Prefix


def test_features_land_in_order_and_text_stays() -> None:
    embeddings = torch.randn(2, 6, 3)
    places = torch.tensor([[0, 1, 1, 0, 0, 0], [1, 1, 0, 1, 1, 0]], dtype=torch.bool)
    features = torch.randn(3, 2, 3)
    out = Prefix(Prefix.Config(), 3)(embeddings, places, features)
    assert torch.equal(out[0, 1:3], features[0])
    assert torch.equal(out[1, :2], features[1])
    assert torch.equal(out[1, 3:5], features[2])
    assert torch.equal(out[~places], embeddings[~places])


def test_a_mismatch_gives_both_numbers_of_tokens_and_images() -> None:
    places = torch.ones(1, 5, dtype=torch.bool)
    with pytest.raises(
        UserError,
        match=r"5 image placeholder tokens \(room for 2.5 images\), but 3 .* 2 tokens each .* 6 in all",
    ):
        Prefix(Prefix.Config(), 3)(torch.zeros(1, 5, 3), places, torch.zeros(3, 2, 3))
