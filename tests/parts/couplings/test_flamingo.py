"""Flamingo: closed gates, the last image, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tessera.errors import UserError
from tessera.lab.composed import pictures, prefix, tiny
from tessera.nn.segments import segment_mask
from tessera.parts.couplings.flamingo import TINY, by_row, last_image


def opened(model: Any) -> Any:
    """The model with all gates at 1/2."""
    for block in model.model.coupling.blocks:
        for gate in (block.attention_gate, block.feed_forward_gate):
            torch.nn.init.constant_(gate, 0.5)
    return model


def test_last_image_equals_a_loop() -> None:
    slots = torch.tensor([[-1, 0, -1, 1, -1, -1, -1], [-1, -1, 0, -1, -1, 1, -1]])
    segments = torch.tensor([[0, 0, 0, 0, 1, 2, 2], [0, 0, 0, 1, 1, 2, 2]])
    for packed in (None, segments):
        found = last_image(slots, packed, 5)
        for b in range(2):
            for t in range(2, 7):
                seen = list(range(t + 1))
                if packed is not None:
                    seen = [k for k in seen if packed[b, k] in (0, packed[b, t])]
                assert int(found[b, t - 2]) == max(int(slots[b, k]) for k in seen)
    assert segment_mask(segments, 7).shape == (2, 1, 7, 7)


def test_images_are_sorted_by_rows() -> None:
    features = torch.randn(3, 2, 4)
    rows = by_row(features, torch.tensor([1, 2]))
    assert torch.equal(rows[0, 0], features[0]) and torch.equal(rows[1], features[1:])
    assert torch.equal(rows[0, 1], torch.zeros(2, 4))


def test_only_the_last_image_changes_what_follows_when_the_text_does_not_carry_it_on() -> None:
    model = opened(tiny({**TINY, "every": 4}))
    ids = torch.tensor([[*prefix(model, 2), 6, 20]])
    images = pictures(2)
    other = torch.cat([pictures(1, seed=9), images[1:]])
    with torch.no_grad():
        # One block, in front of the last layer: the second image's text hears the first one through attention only.
        first = [model(ids, i, output_hidden_states=True).hidden_states for i in (images, other)]
    assert torch.equal(first[0][2], first[1][2])


def test_every_n_th_layer_gets_a_block_and_nonsense_is_refused() -> None:
    assert len(tiny({**TINY, "every": 2}).model.coupling.blocks) == 2
    assert tiny(TINY).tokens_per_image == 1
    with pytest.raises(UserError, match="latents must be at least 1"):
        tiny({**TINY, "latents": 0})
    with pytest.raises(UserError, match="'latnets'.*Did you mean 'latents'"):
        tiny({**TINY, "latnets": 3})
