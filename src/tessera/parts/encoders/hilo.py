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

from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from tessera.config import build, config
from tessera.errors import UserError
from tessera.lab.claim import Finding, claim
from tessera.nn import initialise
from tessera.nn.vit import Backend, eager_attention
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


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


class Block(nn.Module):
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
class HiLoTower(nn.Module):
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
        super().__init__()
        stages = list(zip(config.widths, config.depths, config.heads, config.windows, strict=True))
        side = config.image_size // config.patch_size // 2 ** (len(stages) - 1)
        self.image_size = config.image_size
        self.width = config.widths[-1]
        self.grid = (side, side)
        self.level_count = config.depths[-1]
        self.stem = nn.Conv2d(3, config.widths[0], config.patch_size, stride=config.patch_size)
        self.stem_norm = nn.LayerNorm(config.widths[0])
        self.stages = nn.ModuleList(
            nn.ModuleList(Block(width, heads, window, config.alpha, config.mlp_ratio * width) for _ in range(depth))
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


# What the paper promises


@claim("with s = 1 multi-head attention, with alpha = 0 window attention, else its equations", kind="exact", paper="section 4.1")
def is_its_equation(lab: Lab) -> Finding:
    """Against torch's own multi-head attention on the same weights (s = 1), the same inside of every window (alpha = 0), and a
    naive reading of both groups, head by head; and deformable merging without offsets against a plain convolution."""
    torch.manual_seed(0)
    x = torch.randn(2, 6, 8, 24, dtype=torch.float64)
    whole, local = HiLo(24, 4, window=1).double(), HiLo(24, 4, window=2, alpha=0.0).double()
    weight = torch.cat([whole.low_query.weight, whole.low_key_value.weight])
    bias = torch.cat([whole.low_query.bias, whole.low_key_value.bias])
    windows = x.view(2, 3, 2, 4, 2, 24).transpose(2, 3).reshape(24, 4, 24)
    inside = _plain(windows, local.high_qkv.weight, local.high_qkv.bias, local.high_out, 4)
    mixed = HiLo(24, 4, window=2, alpha=0.5).double()
    merge = torch.randn(5, 24, 2, 2, dtype=torch.float64)
    still = deformable(x.permute(0, 3, 1, 2), x.new_zeros(2, 8, 3, 4), merge, None)
    with torch.no_grad():
        differences = {
            "s = 1": whole(x).flatten(1, 2) - _plain(x.flatten(1, 2), weight, bias, whole.low_out, 4),
            "alpha = 0": local(x) - inside.view(2, 3, 4, 2, 2, 24).transpose(2, 3).reshape(x.shape),
            "both groups": mixed(x) - _naive(mixed, x),
            "merging": still - F.conv2d(x.permute(0, 3, 1, 2), merge, stride=2),
        }
    found = {name: float(d.abs().max()) for name, d in differences.items()}
    return Finding(
        checks={f"{name}: to 1e-12": d < 1e-12 for name, d in found.items()}, measured=found, shape="2 x 6 x 8 places, float64"
    )


def _plain(x: Tensor, weight: Tensor, bias: Tensor, out: nn.Linear, heads: int) -> Tensor:
    """Torch's multi-head attention [B, N, D] -> [B, N, D]."""
    words = x.transpose(0, 1)
    found, _ = F.multi_head_attention_forward(
        words, words, words, x.shape[-1], heads, weight, bias, None, None, False, 0.0, out.weight, out.bias, training=False
    )  # fmt: skip
    return found.transpose(0, 1)


def _naive(module: HiLo, x: Tensor) -> Tensor:
    """Image by image, place by place, head by head."""
    s, size = module.window, x.shape[-1] // (module.high_heads + module.low_heads)
    batch, rows, columns, _ = x.shape
    high, low = [], []
    for b in range(batch):
        means = [x[b, r : r + s, c : c + s].mean((0, 1)) for r in range(0, rows, s) for c in range(0, columns, s)]
        for r in range(rows):
            for c in range(columns):
                top, left = r // s * s, c // s * s
                window = x[b, top : top + s, left : left + s].flatten(0, 1)
                qkv = module.high_qkv(torch.cat([x[b, r, c][None], window]))
                q, k, v = qkv[:1].chunk(3, -1)[0], *(t[1:] for t in qkv.chunk(3, -1)[1:])
                high.append(torch.cat([_head(q, k, v, h, size) for h in range(module.high_heads)]))
                k, v = module.low_key_value(torch.stack(means)).chunk(2, -1)
                q = module.low_query(x[b, r, c])[None]
                low.append(torch.cat([_head(q, k, v, h, size) for h in range(module.low_heads)]))
    joined = torch.cat([module.high_out(torch.stack(high)), module.low_out(torch.stack(low))], -1)
    return joined.view(x.shape)


def _head(q: Tensor, k: Tensor, v: Tensor, head: int, size: int) -> Tensor:
    own = slice(head * size, (head + 1) * size)
    return (q[0, own] @ k[:, own].T / size**0.5).softmax(-1) @ v[:, own]


STEPS, SIDE = 400, 64
"""Training steps, and the side in pixels of the images on which attentions are compared."""


@claim("it is within a point of full attention", kind="effect", paper="tables 4 and 5")
def keeps_accuracy(lab: Lab) -> Finding:
    """The same tower trained with three attentions in its second stage to say, at every place of the image, in which colour the
    scene's only thing is tinted, so that what is seen at one place has to get to all others: HiLo, full attention, and none as
    the control. (Asked for the characters of signs, as they first were, none of these towers learned any. After 200 steps, when
    both are still learning, HiLo says 85 % rightly and full attention 93 %.)"""
    from tessera.lab.lab import mean, spread

    tests = _tinted(lab, "test", 500, 0)
    ways: dict[str, dict[str, object]] = {
        "HiLo": {},
        "full attention": {"windows": (0, 1)},
        "no attention": {"windows": (0, 0)},
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for seed in lab.seeds:
        data = _tinted(lab, "train", 2000, seed)
        for way, options in ways.items():
            found[way].append(_accuracy(_trained(options, data, seed), tests))
    accuracy = {way: mean(values) for way, values in found.items()}
    labels = tests[1]
    return Finding(
        checks={
            "at most 1 point below full attention": accuracy["HiLo"] >= accuracy["full attention"] - 0.01,
            "without attention it would show": accuracy["no attention"] < accuracy["full attention"] - 0.01,
        },
        measured={"accuracy": accuracy["HiLo"]},
        baseline={
            "full attention": accuracy["full attention"],
            "always the most frequent tint": float(labels.bincount().max()) / len(labels),
        },
        control={"no attention": accuracy["no attention"]},
        seeds=lab.seeds,
        spread={way: spread(values) for way, values in found.items()},
        shape=f"500 images of {SIDE} pixels, {(SIDE // 8) ** 2} places, {STEPS} steps of 32, float32",
    )


def _tinted(lab: Lab, split: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [I, 3, SIDE, SIDE] of one tinted thing each, and the tints' numbers [I]."""
    import numpy as np

    from tessera.lab.instruments.duals import single_things
    from tessera.training.dense import to_pixels
    from tessera.world.backgrounds import TINTS

    world = lab.world(split=split, width=SIDE, height=SIDE)
    samples = single_things(world, count, seed, lambda sample: sample.frames[0].things[0].tint is not None)
    labels = [TINTS.index(str(sample.frames[0].things[0].tint)) for sample in samples]
    return to_pixels([np.asarray(sample.images()[0]) for sample in samples]), torch.tensor(labels)


def _trained(options: dict[str, object], data: tuple[Tensor, Tensor], seed: int) -> nn.Module:
    """A small tower and a linear head after AdamW with a falling rate: pixels -> logits of tints at every place [B, N, C]."""
    from tessera.world.backgrounds import TINTS

    small = {"widths": (48, 96), "depths": (1, 3), "heads": (2, 4), "mlp_ratio": 2}
    torch.manual_seed(seed)
    tower = HiLoTower(build(HiLoTower.Config, {"image_size": SIDE, **small, **options}))
    model = nn.Sequential(tower, nn.Linear(tower.width, len(TINTS)))
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20, 2 * (STEPS - step) / STEPS)
        chosen = torch.randint(len(data[1]), (32,))
        logits = model(data[0][chosen])
        loss = F.cross_entropy(logits.flatten(0, 1), data[1][chosen].repeat_interleave(logits.shape[1]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


@torch.no_grad()
def _accuracy(model: nn.Module, data: tuple[Tensor, Tensor]) -> float:
    right = [(model(x).argmax(-1) == y[:, None]).float() for x, y in zip(data[0].split(64), data[1].split(64), strict=True)]
    return float(torch.cat(right).mean())


@claim("faster than spatial reduction and than windows of 7", kind="cost", paper="figure 4, table 3")
def is_faster(lab: Lab) -> Finding:
    """Attention alone at the stage-3 shape of LITv2-S: 14 x 14 places, 384 channels, 12 heads, batch 8, alpha 0.9, s 2; against
    attention whose keys and values come from a strided 2 x 2 convolution, against windows of 7 x 7, and full attention."""
    torch.manual_seed(0)
    x = torch.randn(8, 14, 14, 384)
    ours, reduced, seven, full = HiLo(384, 12), _Reduced(384, 12), HiLo(384, 12, 7, 0.0), HiLo(384, 12, 1)
    others = {"spatial reduction": reduced, "windows of 7": seven, "full attention": full}
    with torch.inference_mode():
        times = {name: lab.timing(partial(module, x), partial(ours, x), rounds=15).median for name, module in others.items()}
    flops = {name: lab.flops(partial(module, x)) / lab.flops(partial(ours, x)) for name, module in others.items()}
    return Finding(
        checks={
            "1.3 times as fast as spatial reduction": times["spatial reduction"] >= 1.3,
            "1.3 times as fast as windows of 7": times["windows of 7"] >= 1.3,
            "fewer operations than each": min(flops.values()) > 1,
        },
        measured={f"time of {name} over its own": value for name, value in times.items()}
        | {f"operations of {name} over its own": value for name, value in flops.items()},
        shape=f"8 x 14 x 14 places, 384 channels, 12 heads, float32, {lab.shape()}",
        note="The advantage is that of this shape; on maps of 56 x 56 or with batch 1 other attentions catch up.",
    )


class _Reduced(nn.Module):
    """Spatial-reduction attention (Wang et al., 2021, arXiv:2102.12122), ratio 2. [B, H, W, D] -> [B, H, W, D]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value, self.out = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.reduce, self.norm = nn.Conv2d(width, width, 2, stride=2), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        coarse = self.norm(self.reduce(x.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2))
        query = self.query(x.flatten(1, 2)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = self.key_value(coarse).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed, _ = eager_attention(self, query, key, value, None, query.shape[-1] ** -0.5)
        return self.out(mixed.flatten(2)).view(x.shape)
