"""Uniform quantisation after training: ranges, codes, and layers that store their weights as codes.

Shapes: rows [C, n] have a scale each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PERCENTILES = (0.999, 0.9999, 0.99999)
Fit: TypeAlias = Callable[[Tensor, int], tuple[Tensor, Tensor]]
"""Rows [C, n] and a number of bits -> (scale, zero point) [C]."""


def uniform(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Codes of x, whole numbers from 0 to 2^bits - 1, same shape and dtype."""
    return ((x / scale).round() + zero).clamp(0, 2**bits - 1)


def quantised(x: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """What the codes of x stand for."""
    return (uniform(x, scale, zero, bits) - zero) * scale


def fitted(x: Tensor, bits: int, percentiles: tuple[float, ...] = PERCENTILES) -> tuple[Tensor, Tensor]:
    """Rows x [C, n] -> (scale, zero point) [C]: of the ranges between percentiles that with the least squared error."""
    best = torch.full_like(x[:, 0], torch.inf)
    scale, zero = torch.ones_like(best), torch.zeros_like(best)
    for low, high in zip(bounds(-x, percentiles), bounds(x, percentiles), strict=True):
        step = ((high + low) / (2**bits - 1)).clamp(min=torch.finfo(x.dtype).tiny * 2**bits)
        offset = (low / step).round()
        error = (x - quantised(x, step[:, None], offset[:, None], bits)).square().mean(1)
        better = error < best
        best, scale, zero = error.where(better, best), step.where(better, scale), offset.where(better, zero)
    return scale, zero


def bounds(x: Tensor, shares: tuple[float, ...]) -> list[Tensor]:
    """Rows x [C, n] -> one [C] per share: the number that so many of a row lie below, between two by linear interpolation."""
    last = x.shape[1] - 1
    highest = x.topk(min(last - int(min(shares) * last) + 1, last + 1), dim=1).values
    found = []
    for share in shares:
        above = last - share * last  # how far from the greatest number; torch.quantile takes no more than 2^24 numbers
        near = int(above)
        far = min(near + 1, highest.shape[1] - 1)
        found.append(torch.lerp(highest[:, near], highest[:, far], above - near))
    return found


class Quantised(nn.Module):
    """A linear layer or convolution with weights as codes, whose input is quantised (scale [] or [D])."""

    codes: Tensor
    scale: Tensor
    zero: Tensor
    input_scale: Tensor
    input_zero: Tensor

    def __init__(self, layer: nn.Linear | nn.Conv2d, bits: int, input_bits: int, given: tuple[Tensor, Tensor], fit: Fit) -> None:
        super().__init__()
        self.bits, self.input_bits, self.shape = bits, input_bits, layer.weight.shape
        self.bias = None if layer.bias is None else nn.Parameter(layer.bias.data, layer.bias.requires_grad)
        rows = layer.weight.data.flatten(1)
        scale, zero = fit(rows, bits)
        codes = uniform(rows, scale[:, None], zero[:, None], bits).to(torch.uint8)
        if bits <= 4:
            codes = F.pad(codes, (0, codes.shape[1] % 2))
            codes = codes[:, ::2] * 16 + codes[:, 1::2]
        for name, value in (("codes", codes), ("scale", scale), ("zero", zero)):
            self.register_buffer(name, value)
        self.register_buffer("input_scale", given[0])
        self.register_buffer("input_zero", given[1])
        self.convolve: dict[str, Any] | None = None
        if isinstance(layer, nn.Conv2d):
            self.convolve = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "groups")}

    def whole_codes(self) -> Tensor:
        """[out, in] uint8, one code each."""
        count = math.prod(self.shape[1:])
        if self.bits > 4:
            return self.codes
        return torch.stack([self.codes // 16, self.codes % 16], -1).flatten(1)[:, :count]

    @property
    def weight(self) -> Tensor:
        """What the codes stand for, in the shape of the layer's weight."""
        return ((self.whole_codes().to(self.scale.dtype) - self.zero[:, None]) * self.scale[:, None]).view(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        """As the layer, with quantised input."""
        x = quantised(x, self.input_scale.to(x.dtype), self.input_zero.to(x.dtype), self.input_bits)
        if self.convolve is not None:
            return F.conv2d(x, self.weight.to(x.dtype), self.bias, **self.convolve)
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))
