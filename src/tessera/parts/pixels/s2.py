"""S2 (Scaling on Scales): a frozen encoder sees an image at several sizes, each cut into views of the size that it knows.

Source: Shi et al., "When Do We Not Need Larger Vision Models?", 2024, arXiv:2403.13043. The image is resized to each scale; a
larger one is cut chessboard-wise into views of the encoder's own size, so that no position has to be interpolated; the views'
features are laid out as they were cut, averaged down to the raster of the encoder, and all scales are put together on channels.
The language model reads as many tokens as before: more pixels cost views, and a wider projector.

Deviations: images are made smaller with antialiasing, so that the first scale is what the encoder was trained on; the released
code resizes without (`antialias=False`). Scales are whole numbers, as the encoders' positions are learned. The paper's analysis
(reconstructing a larger model's features) is not here. A scale may be named twice: it adds channels, no pixels.

Shapes: M images, S = s max(scales) their side, s that of the encoder; k^2 views per image at scale k, on chessboards of k x k;
raster h x w of N tokens, D channels of the encoder, n scales: pixels [M, 3, S, S] -> features [M, N, n D].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.config import config
from tessera.errors import UserError
from tessera.models.views import EncoderViews, Layers
from tessera.registry import part


def split(images: Tensor, k: int) -> Tensor:
    """[B, C, H, W] -> [k k B, C, H / k, W / k]: the views row by row, each for all images."""
    batch, channels, height, width = images.shape
    board = images.reshape(batch, channels, k, height // k, k, width // k)
    return board.permute(2, 4, 0, 1, 3, 5).reshape(k * k * batch, channels, height // k, width // k)


def merge(views: Tensor, k: int) -> Tensor:
    """[k k B, C, h, w] -> [B, C, k h, k w]: undoes `split`."""
    count, channels, height, width = views.shape
    board = views.reshape(k, k, count // (k * k), channels, height, width).permute(2, 3, 0, 4, 1, 5)
    return board.reshape(count // (k * k), channels, k * height, k * width)


def join(maps: Sequence[Tensor]) -> Tensor:
    """Maps [B, C_i, h_i, w_i] of the scales -> [B, sum of C_i, h, w] on the raster of the first one, by averaging areas."""
    size = maps[0].shape[-2:]
    averaged = (F.interpolate(m.float(), size, mode="area").to(m.dtype) if m.shape[-2:] != size else m for m in maps)
    return torch.cat(list(averaged), dim=1)


def resize(images: Tensor, side: int, antialias: bool) -> Tensor:
    """[B, C, H, W] -> [B, C, side, side], bicubic, in float32."""
    if images.shape[-2:] == (side, side):
        return images
    smaller = side < images.shape[-1]
    found = F.interpolate(images.float(), size=(side, side), mode="bicubic", antialias=antialias and smaller)
    return found.to(images.dtype)


@part("s2", socket="pixels", catalog=78)
class S2(EncoderViews):
    """Every encoder of a composed model at several scales."""

    @config
    class Config:
        """scales: multiples of the encoder's size, rising; antialias: when an image is made smaller."""

        scales: tuple[int, ...] = (1, 2)
        antialias: bool = True

        def validate_scales(self) -> None:
            rising = all(a <= b for a, b in zip(self.scales, self.scales[1:], strict=False))
            if not self.scales or self.scales[0] != 1 or not rising:
                raise ValueError(f"scales are rising whole numbers from 1, such as (1, 2), not {self.scales}.")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.scales, self.antialias = tuple(config.scales), config.antialias

    def image_size(self, size: int) -> int:
        """The side of the largest scale."""
        return size * max(self.scales)

    def width(self, width: int) -> int:
        """The channels of all scales."""
        return width * len(self.scales)

    def forward(self, encode: Callable[[Tensor], Layers], pixels: Tensor, size: int, grid: tuple[int, int]) -> Layers:
        """Pixels [M, 3, S, S] -> [M, N, n D] for every layer of the encoder. Raises `UserError` for images of another size."""
        side = self.image_size(size)
        if pixels.shape[-2:] != (side, side):
            raise UserError(
                f"pixels 's2' with scales {self.scales} wants images of {side} x {side} pixels for an encoder of {size}, "
                f"not {pixels.shape[-1]} x {pixels.shape[-2]}."
            )
        found: list[list[Tensor]] = []
        for k in self.scales:
            layers = encode(split(resize(pixels, size * k, self.antialias), k))
            found.append([merge(layer.transpose(1, 2).unflatten(2, grid), k) for layer in layers])
        return tuple(join(maps).flatten(2).transpose(1, 2) for maps in zip(*found, strict=True))
