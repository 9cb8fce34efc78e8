"""The convolutional ViT against a plain reading of its description."""

from __future__ import annotations

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch.nn import functional as F

from tessera.errors import UserError
from tessera.nn.vit import eager_backend
from tessera.parts.encoders.conv_vit import ConvViT


def small(**changes: int) -> ConvViT.Config:
    return ConvViT.Config(**({"image_size": 24, "patch_size": 8, "width": 24, "depth": 2, "heads": 2} | changes))


def naive(model: ConvViT, pixels: torch.Tensor) -> torch.Tensor:
    """Block by block, head by head, place by place."""
    x = (model.stem(pixels).flatten(2).transpose(1, 2) + model.position)[0]
    side = model.grid[0]
    for block in model.blocks:
        image = x.t().reshape(1, -1, side, side)
        local = F.conv2d(image, block.local.weight, block.local.bias, padding=1, groups=x.shape[1])
        x = x + local[0].flatten(1).t()
        heads, size = block.attention.heads, x.shape[1] // block.attention.heads
        query, key, value = block.attention.qkv(block.norm1(x)).chunk(3, dim=-1)
        mixed = []
        for h in range(heads):
            part = slice(h * size, (h + 1) * size)
            weights = (query[:, part] @ key[:, part].t() / size**0.5).softmax(-1)
            mixed.append(weights @ value[:, part])
        x = x + block.attention.out(torch.cat(mixed, -1))
        x = x + block.mlp.down(F.gelu(block.mlp.up(block.norm2(x)), approximate="tanh"))
    return model.norm(x)[None]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_parity_with_a_naive_reading(attention: str) -> None:
    backend = eager_backend()
    backend._attn_implementation = attention
    model = ConvViT(small(), backend).double()
    pixels = torch.randn(1, 3, 24, 24, dtype=torch.float64)
    torch.testing.assert_close(model(pixels), naive(model, pixels), rtol=0, atol=1e-12)


def test_gradient_is_exact() -> None:
    model = ConvViT(small(depth=1)).double()
    pixels = torch.randn(1, 3, 24, 24, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: model(x).sum(-1), (pixels,), fast_mode=True)


@pytest.mark.parametrize("patch", [2, 4, 8])
def test_the_stem_goes_down_to_the_patch_size(patch: int) -> None:
    model = ConvViT(small(image_size=16, patch_size=patch, depth=1))
    assert model(torch.zeros(1, 3, 16, 16)).shape == (1, (16 // patch) ** 2, 24)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match=r"takes images of shape \[3, 24, 24\], not \[3, 32, 32\]"):
        ConvViT(small())(torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("wrong", [{"patch_size": 6}, {"image_size": 25}, {"heads": 5}, {"depth": 0}])
def test_impossible_geometry_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(StrictDataclassClassValidationError):
        small(**wrong)
