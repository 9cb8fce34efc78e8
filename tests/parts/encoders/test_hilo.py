"""HiLo attention, deformable merging, and the tower around them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from torch.nn import functional as F

from tessera.errors import UserError
from tessera.parts.encoders.hilo import HiLo, HiLoTower, deformable


def small(**changes: Any) -> HiLoTower.Config:
    plain = {"image_size": 32, "widths": (12, 24), "depths": (1, 2), "heads": (1, 4), "windows": (0, 2), "alpha": 0.5}
    return HiLoTower.Config(**(plain | changes))


@pytest.mark.parametrize(("heads", "alpha", "low"), [(10, 0.9, 9), (3, 0.9, 2), (4, 0.0, 0), (4, 1.0, 4), (6, 0.5, 3)])
def test_heads_are_shared_out_by_alpha(heads: int, alpha: float, low: int) -> None:
    module = HiLo(heads * 4, heads, window=2, alpha=alpha)
    assert (module.low_heads, module.high_heads) == (low, heads - low)
    assert HiLo(heads * 4, heads, window=1, alpha=alpha).low_heads == heads


def test_a_map_that_windows_do_not_divide_is_padded_with_zeros() -> None:
    module = HiLo(12, 3, window=2, alpha=0.7).double()
    x = torch.randn(2, 5, 3, 12, dtype=torch.float64)
    padded = F.pad(x, (0, 0, 0, 1, 0, 1))
    torch.testing.assert_close(module(x), module(padded)[:, :5, :3], rtol=0, atol=0)


def test_windows_see_nothing_outside_and_averages_see_everything() -> None:
    x = torch.randn(1, 4, 4, 12, dtype=torch.float64)
    other = x.clone()
    other[:, 2:] += 1
    for alpha, same in ((0.0, True), (1.0, False)):
        module = HiLo(12, 3, window=2, alpha=alpha).double()
        assert torch.equal(module(x)[:, :2], module(other)[:, :2]) == same


def test_deformable_merging_is_torchvisions() -> None:
    ops = pytest.importorskip("torchvision.ops")
    image, offset = torch.randn(2, 5, 6, 8, dtype=torch.float64), 1.5 * torch.randn(2, 8, 3, 4, dtype=torch.float64)
    weight, bias = torch.randn(7, 5, 2, 2, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    wanted = ops.deform_conv2d(image, offset, weight, bias, stride=2)
    torch.testing.assert_close(deformable(image, offset, weight, bias), wanted, rtol=0, atol=1e-12)


def test_levels_are_the_blocks_of_the_last_stage() -> None:
    model = HiLoTower(small()).eval()
    pixels = torch.randn(2, 3, 32, 32)
    levels = model.levels(pixels)
    assert len(levels) == model.level_count == 2
    assert {level.shape for level in levels} == {(2, 16, 24)} and model.grid == (4, 4)
    assert torch.equal(levels[-1], model(pixels)) and not torch.equal(model.norm(levels[0]), levels[1])


def test_two_images_are_two_single_ones() -> None:
    model = HiLoTower(small()).double()
    pixels = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    torch.testing.assert_close(model(pixels), torch.cat([model(p[None]) for p in pixels]), rtol=0, atol=1e-12)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(UserError, match=r"takes images of shape \[3, 32, 32\], not \[3, 24, 24\]"):
        HiLoTower(small())(torch.zeros(1, 3, 24, 24))


@pytest.mark.parametrize(
    "wrong", [{"heads": (1, 5)}, {"image_size": 36}, {"alpha": 1.5}, {"depths": (1,)}, {"windows": (-1, 2)}, {"mlp_ratio": 0}]
)
def test_impossible_geometry_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(StrictDataclassClassValidationError):
        small(**wrong)
