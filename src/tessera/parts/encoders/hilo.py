"""HiLo attention: some heads look at fine detail inside small windows, the others at the whole map through its averages.

Source: Pan, Cai, Zhuang, "Fast Vision Transformers with HiLo Attention", 2022, arXiv:2205.13213 (LITv2). Of `heads` heads the
int(alpha x heads) Lo-Fi ones ask from every place and find keys and values on the map averaged over windows of s x s; the
others, Hi-Fi, attend inside of the windows. Each group has its own projections; their outputs are concatenated. The tower around
it is LITv2's: a pyramid without position embeddings, whose first stages have no attention at all, with a 3x3 depthwise
convolution in every feed-forward layer (which tells places apart) and deformable token merging between the stages (Pan et al.,
"Less is More: Pay Less Attention in Vision Transformers", 2021, arXiv:2105.14217).

Deviations: LayerNorm instead of BatchNorm behind a merging (no statistics to keep); no drop path; two stages by default, so that
an image of 112 pixels keeps the 14 x 14 places that the other towers here have; a map that windows do not divide is padded with
zeros below and on the right, as in the paper's detection code.

Shapes: images B, map H x W, channels D, heads h; pixels [B, 3, S, S] in [-1, 1] -> features [B, N, D] in reading order.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from tessera.config import config
from tessera.errors import UserError
from tessera.models.contracts import Encoder
from tessera.nn import initialise
from tessera.nn.vit import Backend, eager_attention
from tessera.registry import part


class HiLo(nn.Module):
    """[B, H, W, D] -> [B, H, W, D]. window 1: all heads attend to the whole map; alpha 0: all inside of the windows."""

    def __init__(self, width: int, heads: int, window: int = 2, alpha: float = 0.9) -> None:
        super().__init__()
        self.window = window
        self.low_heads = heads if window == 1 else int(heads * alpha)
        self.high_heads = heads - self.low_heads
        size = width // heads
        self.scaling = size**-0.5
        low, high = self.low_heads * size, self.high_heads * size
        if low:
            self.low_query = nn.Linear(width, low)
            self.low_key_value = nn.Linear(width, 2 * low)
            self.low_out = nn.Linear(low, low)
        if high:
            self.high_qkv = nn.Linear(width, 3 * high)
            self.high_out = nn.Linear(high, high)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = x.shape[1:3]
        down, right = -rows % self.window, -columns % self.window
        if down or right:
            x = F.pad(x, (0, 0, 0, right, 0, down))
        groups = [self._high(x)] if self.high_heads else []
        groups += [self._low(x)] if self.low_heads else []
        mixed = groups[0] if len(groups) == 1 else torch.cat(groups, dim=-1)
        return mixed[:, :rows, :columns] if down or right else mixed

    def _high(self, x: Tensor) -> Tensor:
        s, h = self.window, self.high_heads
        batch, rows, columns, _ = x.shape
        qkv = self.high_qkv(x).view(batch, rows // s, s, columns // s, s, 3, h, -1)
        # Every window is a batch entry of its own: [3, B * windows, h, s * s, D / heads].
        query, key, value = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).flatten(5, 6).flatten(1, 3)
        mixed, _ = eager_attention(self, query, key, value, None, self.scaling)
        back = mixed.reshape(batch, rows // s, columns // s, s, s, -1).transpose(2, 3)
        return self.high_out(back.reshape(batch, rows, columns, -1))

    def _low(self, x: Tensor) -> Tensor:
        h = self.low_heads
        batch, rows, columns, _ = x.shape
        query = self.low_query(x).view(batch, rows * columns, h, -1).transpose(1, 2)
        coarse = x if self.window == 1 else F.avg_pool2d(x.permute(0, 3, 1, 2), self.window).permute(0, 2, 3, 1)
        key, value = self.low_key_value(coarse.flatten(1, 2)).view(batch, -1, 2, h, query.shape[-1]).permute(2, 0, 3, 1, 4)
        mixed, _ = eager_attention(self, query, key, value, None, self.scaling)
        return self.low_out(mixed.reshape(batch, rows, columns, -1))


class ConvMLP(nn.Module):
    """Linear, 3x3 depthwise convolution, GELU, linear. [B, H, W, D] -> [B, H, W, D]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.local = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.local(self.up(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return self.down(F.gelu(hidden))


class HiLoBlock(nn.Module):
    """x + attention(norm(x)), where there is attention; x + mlp(norm(x)). [B, H, W, D] -> [B, H, W, D]."""

    def __init__(self, width: int, heads: int, window: int, alpha: float, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width) if window else None
        self.attention = HiLo(width, heads, window, alpha) if window else None
        self.norm2 = nn.LayerNorm(width)
        self.mlp = ConvMLP(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        if self.attention is not None and self.norm1 is not None:
            x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Merge(nn.Module):
    """Deformable merging of 2x2 places: each corner of the kernel is read where a learned offset says. [B, H, W, D] ->
    [B, H/2, W/2, D']."""

    def __init__(self, width: int, out_width: int) -> None:
        super().__init__()
        self.offset = nn.Conv2d(width, 8, 2, stride=2)
        self.weight = nn.Conv2d(width, out_width, 2, stride=2)
        self.norm = nn.LayerNorm(out_width)

    def forward(self, x: Tensor) -> Tensor:
        image = x.permute(0, 3, 1, 2)
        sampled = deformable(image, self.offset(image), self.weight.weight, self.weight.bias)
        return F.gelu(self.norm(sampled.permute(0, 2, 3, 1)))


def deformable(image: Tensor, offset: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Deformable 2x2 convolution of stride 2 (Dai et al., 2017, arXiv:1703.06211).

    image [B, D, H, W], offset [B, 8, H/2, W/2] (y and x of the four corners in reading order, in places), weight [D', D, 2, 2]
    -> [B, D', H/2, W/2]. Outside of the image there are zeros.
    """
    batch, width, rows, columns = image.shape
    exact = torch.promote_types(offset.dtype, torch.float32)  # places do not fit into half precision
    moved = offset.view(batch, 2, 2, 2, rows // 2, columns // 2).to(exact)  # [B, ky, kx, (y, x), H/2, W/2]
    corner = torch.arange(2, device=image.device, dtype=exact)
    y = moved[:, :, :, 0] + corner[:, None, None, None] + 2 * torch.arange(rows // 2, device=image.device)[:, None]
    x = moved[:, :, :, 1] + corner[:, None, None] + 2 * torch.arange(columns // 2, device=image.device)
    places = torch.stack([(2 * x + 1) / columns - 1, (2 * y + 1) / rows - 1], dim=-1)
    found = F.grid_sample(image.to(exact), places.flatten(1, 3), mode="bilinear", padding_mode="zeros", align_corners=False)
    found = found.view(batch, width, 4, rows // 2, columns // 2)
    mixed = torch.einsum("bdkhw,odk->bohw", found.to(image.dtype), weight.flatten(2).to(image.dtype))
    return mixed if bias is None else mixed + bias[:, None, None]


TINY = {"image_size": 32, "widths": (12, 24), "depths": (1, 2), "heads": (1, 4)}
"""A size for tests."""


@part("hilo", socket="encoders", catalog=376)
class HiLoTower(Encoder):
    """Pixels [B, 3, S, S] -> features [B, N, width] of the last stage."""

    @config
    class Config:
        """image_size and patch_size in pixels. Per stage: widths (channels), depths (blocks), heads, windows (side s in places;
        1: full attention, 0: a stage without attention). alpha: share of the heads that are Lo-Fi, 0 to 1. MLP width as a
        multiple of the channels. Between two stages 2x2 places become one."""

        image_size: int = 112
        patch_size: int = 4
        widths: tuple[int, ...] = (96, 192)
        depths: tuple[int, ...] = (2, 4)
        heads: tuple[int, ...] = (3, 6)
        windows: tuple[int, ...] = (0, 2)
        alpha: float = 0.9
        mlp_ratio: int = 4

        def validate_geometry(self) -> None:
            stages = len(self.widths)
            if not stages or {len(self.depths), len(self.heads), len(self.windows)} != {stages}:
                raise ValueError(
                    f"widths, depths, heads and windows have one entry per stage, not {stages}, {len(self.depths)}, "
                    f"{len(self.heads)} and {len(self.windows)}."
                )
            if min(self.depths) < 1 or min(self.heads) < 1 or min(self.windows) < 0 or self.mlp_ratio < 1:
                raise ValueError("depths, heads and mlp_ratio are at least 1, windows at least 0.")
            for width, heads in zip(self.widths, self.heads, strict=True):
                if width < 1 or width % heads:
                    raise ValueError(f"width {width} cannot be divided among {heads} heads.")
            if not 0 <= self.alpha <= 1:
                raise ValueError(f"alpha is a share of the heads from 0 to 1, not {self.alpha}.")
            step = self.patch_size * 2 ** (stages - 1)
            if self.patch_size < 1 or self.image_size < step or self.image_size % step:
                raise ValueError(f"image_size {self.image_size} is not a multiple of {step}, patch_size and mergings together.")

    def __init__(self, config: Config, backend: Backend | None = None) -> None:
        super().__init__(config, backend)
        stages = list(zip(config.widths, config.depths, config.heads, config.windows, strict=True))
        side = config.image_size // config.patch_size // 2 ** (len(stages) - 1)
        self.image_size = config.image_size
        self.width = config.widths[-1]
        self.grid = (side, side)
        self.level_count = config.depths[-1]
        self.stem = nn.Conv2d(3, config.widths[0], config.patch_size, stride=config.patch_size)
        self.stem_norm = nn.LayerNorm(config.widths[0])
        self.stages = nn.ModuleList(
            nn.ModuleList(HiLoBlock(width, heads, window, config.alpha, config.mlp_ratio * width) for _ in range(depth))
            for width, depth, heads, window in stages
        )
        self.merges = nn.ModuleList(Merge(before, after) for before, after in pairwise(config.widths))
        self.norm = nn.LayerNorm(self.width)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02; convolutions as PyTorch's own, mergings begin without offsets."""
        initialise.tree(self)
        for merge in self.merges:
            assert isinstance(merge, Merge)
            init.zeros_(merge.offset.weight)
            init.zeros_(merge.offset.bias)

    def levels(self, pixel_values: Tensor) -> list[Tensor]:
        """[B, 3, S, S] -> one [B, N, width] per block of the last stage; the last is what `forward` gives.

        Raises `UserError` for images of another size.
        """
        if pixel_values.shape[1:] != (3, self.image_size, self.image_size):
            raise UserError(
                f"this encoder takes images of shape [3, {self.image_size}, {self.image_size}], "
                f"not {list(pixel_values.shape[1:])}."
            )
        x = self.stem_norm(self.stem(pixel_values).permute(0, 2, 3, 1))
        found: list[Tensor] = []
        for number, stage in enumerate(self.stages):
            assert isinstance(stage, nn.ModuleList)
            x = self.merges[number - 1](x) if number else x
            found = []
            for block in stage:
                x = block(x)
                found.append(x.flatten(1, 2))
        return [*found[:-1], self.norm(found[-1])]

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, S, S] -> [B, N, D]. Raises `UserError` for images of another size."""
        return self.levels(pixel_values)[-1]
