from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.copies import assert_same_model
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.config import build
from tessera.errors import UserError
from tessera.models.configuration import TesseraConfig
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.parts import buildable, normalise
from tessera.parts.pixels.s2 import S2, join, merge, resize, split


def made(**options: Any) -> S2:
    return S2(build(S2.Config, options))


@pytest.mark.parametrize("k", [1, 2, 3])
def test_split_and_merge_undo_each_other_and_keep_reading_order(k: int) -> None:
    images = torch.randn(2, 3, 6 * k, 6 * k)
    views = split(images, k)
    assert views.shape == (2 * k * k, 3, 6, 6)
    assert torch.equal(merge(views, k), images)
    for row in range(k):
        for column in range(k):
            wanted = images[:, :, 6 * row : 6 * row + 6, 6 * column : 6 * column + 6]
            assert torch.equal(views[2 * (row * k + column) : 2 * (row * k + column) + 2], wanted)


def test_scales_are_averaged_to_the_raster_of_the_first() -> None:
    one, three = torch.randn(2, 4, 2, 2), torch.randn(2, 5, 6, 6)
    found = join([one, three])
    assert torch.equal(found[:, :4], one)
    torch.testing.assert_close(found[:, 4:], F.avg_pool2d(three, 3))


def test_only_shrinking_is_antialiased() -> None:
    images = torch.randn(1, 3, 16, 16)
    assert resize(images, 16, True) is images
    assert torch.equal(resize(images, 32, True), F.interpolate(images, size=(32, 32), mode="bicubic"))
    assert not torch.allclose(resize(images, 8, True), resize(images, 8, False))


def test_a_view_sees_only_itself() -> None:
    """Features of the second scale of a corner do not change when the opposite corner does."""
    encoder = nn.Conv2d(3, 4, 4, stride=4)

    def encode(views: Tensor) -> tuple[Tensor, ...]:
        mixed = encoder(views)
        return ((mixed + mixed.mean((2, 3), keepdim=True)).flatten(2).transpose(1, 2),)

    pixels = torch.randn(1, 3, 16, 16)
    other = pixels.clone()
    other[..., 8:, 8:] += 1
    with torch.no_grad():
        before, after = (made()(encode, p, 8, (2, 2))[0] for p in (pixels, other))
    assert before.shape == (1, 4, 8)
    assert torch.equal(before[:, :3, 4:], after[:, :3, 4:])
    assert not torch.allclose(before[:, 3, 4:], after[:, 3, 4:])
    assert not torch.allclose(before[:, :3, :4], after[:, :3, :4]), "the first scale sees the whole image"


@pytest.mark.parametrize("scales", [(), (2, 3), (1, 3, 2), (0, 1)])
def test_scales_that_do_not_rise_from_one_are_refused(scales: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="rising whole numbers from 1"):
        made(scales=scales)


# In the composed model


def composed(pixels: dict[str, Any] | None, **more: Any) -> Any:
    torch.manual_seed(0)
    encoder = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 2}
    small = {**encoder, "image_size": 16, "patch_size": 4, "width": 12}
    text = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 32}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    parts = {"encoders": [encoder, small], **({"pixels": pixels} if pixels else {}), **more}
    return TesseraForConditionalGeneration(TesseraConfig(parts=parts, text_config=text)).eval()


@torch.no_grad()
def test_one_scale_is_the_model_without_it_bit_for_bit() -> None:
    plain, wrapped = composed(None), composed({"kind": "s2", "scales": [1]})
    wrapped.load_state_dict(plain.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(plain.get_image_features(pixels), wrapped.get_image_features(pixels))
    assert "pixels" not in plain.config.parts


@torch.no_grad()
def test_two_scales_widen_the_channels_and_keep_the_tokens(tmp_path: Path) -> None:
    model = composed({"kind": "s2"})
    assert model.image_size == 64 and model.tokens_per_image == 16
    pixels = torch.randn(2, 3, 64, 64)
    features = model.encode_images(pixels).features
    assert features.shape == (2, 16, 2 * (24 + 12))
    first = model.model.encoders[0](resize(pixels, 32, True))
    torch.testing.assert_close(features[..., :24], first)
    model.save_pretrained(tmp_path)
    again = TesseraForConditionalGeneration.from_pretrained(tmp_path)
    assert again.config.parts["pixels"] == {"kind": "s2", "scales": [1, 2], "antialias": True}
    assert_same_model(again, model, lambda m: m.get_image_features(pixels))


def test_the_encoders_learn_through_it() -> None:
    model = composed({"kind": "s2"}).train()
    model.get_image_features(torch.randn(1, 3, 64, 64)).square().sum().backward()
    assert all(p.grad is not None for e in model.model.encoders for p in e.parameters())


def test_other_images_and_other_pixels_parts_are_refused() -> None:
    model = composed({"kind": "s2"})
    with pytest.raises(UserError, match="wants images of 64 x 64 pixels for an encoder of 32, not 32 x 32"):
        model.get_image_features(torch.randn(1, 3, 32, 32))
    assert buildable("pixels") == ["s2"]
    with pytest.raises(UserError, match=r"parts\.pixels\.kind: 'mini_monkey' cuts a picture .* Parts: s2\."):
        normalise({"pixels": {"kind": "mini_monkey"}})
    with pytest.raises(UserError, match="no such|there is no|scale"):
        normalise({"pixels": {"kind": "s2", "scale": 2}})
