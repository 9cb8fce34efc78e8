"""Cross-attention and its gates against loops; the resampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessera.errors import UserError
from tessera.nn.cross_attention import CrossAttention, GatedCrossAttention, attend
from tessera.nn.resampler import PerceiverResampler


def looped(query: Tensor, key: Tensor, value: Tensor, heads: int, seen: Tensor) -> Tensor:
    out = torch.zeros_like(query)
    width = query.shape[-1] // heads
    for b in range(query.shape[0]):
        for t in range(query.shape[1]):
            keys = seen[b, t].nonzero().flatten()
            for h in range(heads):
                part = slice(h * width, h * width + width)
                if len(keys):
                    weights = (key[b, keys, part] @ query[b, t, part] / width**0.5).softmax(0)
                    out[b, t, part] = weights @ value[b, keys, part]
    return out


def test_attention_equals_a_loop_and_gives_zeros_to_who_sees_nothing() -> None:
    query, key, value = torch.randn(2, 5, 8), torch.randn(2, 7, 8), torch.randn(2, 7, 8)
    seen = torch.rand(2, 5, 7) > 0.4
    seen[0, 2] = False
    out = attend(query, key, value, 2, seen)
    torch.testing.assert_close(out, looped(query, key, value, 2, seen), rtol=0, atol=1e-6)
    assert torch.equal(out[0, 2], torch.zeros(8))
    everything = looped(query, key, value, 2, torch.ones_like(seen))
    torch.testing.assert_close(attend(query, key, value, 2), everything, rtol=0, atol=1e-6)


def test_closed_gates_are_the_identity_and_open_ones_add_what_they_should() -> None:
    block = GatedCrossAttention(12, 6, heads=2, head_width=4)
    x, context = torch.randn(2, 5, 12), torch.randn(2, 3, 6)
    seen = torch.ones(2, 5, 3, dtype=torch.bool)
    assert torch.equal(block(x, context, seen), x)
    assert torch.equal(block(x, None), x)
    nn.init.constant_(block.attention_gate, 0.7)
    nn.init.constant_(block.feed_forward_gate, -0.3)
    after = x + torch.tanh(torch.tensor(0.7)) * block.attention(x, context, seen)
    expected = after + torch.tanh(torch.tensor(-0.3)) * block.feed_forward(after)
    torch.testing.assert_close(block(x, context, seen), expected)
    assert not torch.equal(block(x, None), x)


def test_gates_get_gradients_when_they_are_closed() -> None:
    block = GatedCrossAttention(12, 6, heads=2, head_width=4)
    block(torch.randn(1, 5, 12), torch.randn(1, 3, 6)).square().sum().backward()
    assert block.attention_gate.grad is not None and float(block.attention_gate.grad.abs()) > 0
    assert isinstance(block.attention, CrossAttention)
    assert float(block.attention.query.weight.grad.abs().max()) == 0  # type: ignore[union-attr]


@pytest.mark.parametrize("frames", [1, 4, 8])
def test_the_resampler_gives_as_many_latents_for_every_number_of_frames(frames: int) -> None:
    resampler = PerceiverResampler(16, latents=5, depth=2, heads=2, head_width=8, frames=8)
    assert resampler(torch.randn(3, frames, 9, 16)).shape == (3, 5, 16)


def test_the_resampler_equals_its_equations() -> None:
    resampler = PerceiverResampler(8, latents=3, depth=1, heads=2, head_width=4, frames=2)
    features = torch.randn(1, 2, 4, 8)
    assert resampler.times is not None
    read = (features + resampler.times[:, None]).flatten(1, 2)
    layer: Any = resampler.attention[0]
    latents = resampler.latents[None]
    own = layer.norm_latents(latents)
    both = torch.cat([layer.norm_features(read), own], dim=1)
    key, value = layer.key_value(both).chunk(2, dim=-1)
    seen = torch.ones(1, 3, both.shape[1], dtype=torch.bool)
    latents = latents + layer.out(looped(layer.query(own), key, value, 2, seen))
    latents = latents + resampler.feed_forward[0](latents)
    torch.testing.assert_close(resampler(features), resampler.norm(latents), rtol=0, atol=1e-6)


def test_the_order_of_patches_does_not_matter_and_that_of_frames_does() -> None:
    generator = torch.Generator().manual_seed(0)
    resampler = PerceiverResampler(16, latents=5, depth=1, heads=2, head_width=8, frames=2)
    for matrix in (p for p in resampler.parameters() if p.ndim == 2):
        nn.init.normal_(matrix, std=0.5, generator=generator)
    features = torch.randn(1, 2, 9, 16, generator=generator)
    torch.testing.assert_close(resampler(features.flip(2)), resampler(features), rtol=0, atol=1e-5)
    assert not torch.allclose(resampler(features.flip(1)), resampler(features), atol=1e-2)


def test_more_frames_than_there_are_times_are_refused() -> None:
    with pytest.raises(UserError, match="a clip has 3 frames; this resampler knows the times of 2"):
        PerceiverResampler(8, 2, 1, 2, 4, frames=2)(torch.randn(1, 3, 4, 8))
    with pytest.raises(UserError, match="resampler of single images"):
        PerceiverResampler(8, 2, 1, 2, 4)(torch.randn(1, 3, 4, 8))
