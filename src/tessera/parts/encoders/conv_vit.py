"""Vision transformer with a convolutional stem and a depthwise convolution in every block.

Sources: Xiao et al., "Early Convolutions Help Transformers See Better", 2021, arXiv:2106.14881 (the stem);
Chu et al., "Conditional Positional Encodings for Vision Transformers", 2021, arXiv:2102.10882 (the residual
3x3 depthwise convolution); Dosovitskiy et al., 2020, arXiv:2010.11929 (the rest). Small towers trained for
hours rather than weeks learn far faster with both convolutions than with a patch embedding alone.

Deviations: GroupNorm with one group in the stem instead of BatchNorm (no statistics to keep); the depthwise
convolution sits in every block, before attention; no class token.

Shapes: pixels [B, 3, S, S] in [-1, 1] -> features [B, N, D], N = (S / patch_size)^2 in reading order.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from transformers import initialization as init

from tessera.config import config
from tessera.errors import UserError
from tessera.models.contracts import Encoder
from tessera.nn import initialise
from tessera.nn.vit import Backend, FeedForward, SelfAttention, eager_backend
from tessera.registry import part


class ConvBlock(nn.Module):
    """x + depthwise(x); x + attention(norm(x)); x + mlp(norm(x)). [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, heads: int, hidden: int, grid: int, backend: Backend) -> None:
        super().__init__()
        self.grid = grid
        self.local = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, backend)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = FeedForward(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        # [B, N, D] read as [B, D, g, g] is a channels-last image: no copy on the way in or out.
        image = x.unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        x = x + self.local(image).permute(0, 2, 3, 1).flatten(1, 2)
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@part("conv_vit", socket="encoders")
class ConvViT(Encoder):
    """Pixels [B, 3, S, S] -> features [B, N, width]."""

    @config
    class Config:
        """image_size and patch_size in pixels; width D; depth blocks; heads; MLP width as a multiple of D."""

        image_size: int = 112
        patch_size: int = 8
        width: int = 192
        depth: int = 6
        heads: int = 3
        mlp_ratio: int = 4

        def validate_geometry(self) -> None:
            if self.patch_size < 2 or self.patch_size & (self.patch_size - 1):
                raise ValueError(f"patch_size must be a power of two of at least 2, not {self.patch_size}.")
            if self.image_size < self.patch_size or self.image_size % self.patch_size:
                raise ValueError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}.")
            if self.heads < 1 or self.width % self.heads:
                raise ValueError(f"width {self.width} cannot be divided among {self.heads} heads.")
            if self.depth < 1 or self.mlp_ratio < 1:
                raise ValueError(f"depth and mlp_ratio must be at least 1, not {self.depth} and {self.mlp_ratio}.")

    def __init__(self, config: Config, backend: Backend | None = None) -> None:
        super().__init__(config, backend)
        backend = backend if backend is not None else eager_backend()
        side = config.image_size // config.patch_size
        self.image_size = config.image_size
        self.width = config.width
        self.grid = (side, side)
        self.level_count = config.depth
        steps = int(math.log2(config.patch_size))
        widths = [3, *(max(24, config.width >> (steps - 1 - i)) for i in range(steps - 1)), config.width]
        stem: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(widths)):
            stem.append(nn.Conv2d(before, after, 3, stride=2, padding=1))
            if i < steps - 1:
                stem += [nn.GroupNorm(1, after), nn.GELU(approximate="tanh")]
        self.stem = nn.Sequential(*stem)
        self.position = nn.Parameter(torch.empty(1, side * side, config.width))
        hidden = config.mlp_ratio * config.width
        self.blocks = nn.ModuleList(ConvBlock(config.width, config.heads, hidden, side, backend) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02; the layers that write to the residual stream are scaled down by depth."""
        initialise.tree(self)
        init.normal_(self.position, std=0.02)
        std = 0.02 / math.sqrt(2 * len(self.blocks))
        for block in self.blocks:
            assert isinstance(block, ConvBlock)
            initialise.linear(block.attention.out, std)
            initialise.linear(block.mlp.down, std)

    def levels(self, pixel_values: Tensor) -> list[Tensor]:
        """[B, 3, S, S] -> one [B, N, D] per block; the last, behind the final norm, is what `forward` gives.

        Raises `UserError` for images of another size than the configured one, because positions are learned per place.
        """
        if pixel_values.shape[1:] != (3, self.image_size, self.image_size):
            raise UserError(
                f"this encoder takes images of shape [3, {self.image_size}, {self.image_size}], "
                f"not {list(pixel_values.shape[1:])}: resize them, or build the encoder with "
                f"image_size={pixel_values.shape[-1]}."
            )
        x = self.stem(pixel_values).flatten(2).transpose(1, 2) + self.position
        x = x.contiguous()
        found = []
        for block in self.blocks:
            x = block(x)
            found.append(x)
        return [*found[:-1], self.norm(x)]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, N, D]. Raises `UserError` as `levels` does."""
        return self.levels(pixel_values)[-1]


TINY = {"image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "heads": 2}
