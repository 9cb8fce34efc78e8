"""Layers of MoVA: placed attention, SwiGLU, readers of the question, the RegNet block.

Shapes: B images, N base places on a grid, C base channels, Q words of the question, W channels of a reader.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from tessera.nn import initialise
from tessera.nn.tokens import QuestionText
from tessera.nn.vit import FeedForward, SelfAttention, eager_attention, eager_backend

THETA = 10_000.0


def rotary(grid: tuple[int, int], size: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine [N, size] of 2-D rotary positions: the first half of the channels turns with the row, the second with the
    column, neighbours in pairs."""
    frequencies = THETA ** (-torch.arange(0, size // 2, 2, dtype=torch.float32) / (size // 2))
    rows, columns = (torch.arange(n, dtype=torch.float32)[:, None] * frequencies for n in grid)
    rows, columns = rows.repeat_interleave(2, -1), columns.repeat_interleave(2, -1)
    shape = (*grid, size // 2)
    angles = torch.cat([rows[:, None].expand(shape), columns[None].expand(shape)], -1).flatten(0, 1)
    return angles.cos(), angles.sin()


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys x [..., N, size], turned by their place."""
    even, odd = x[..., 0::2], x[..., 1::2]
    return x * cos + torch.stack([-odd, even], -1).flatten(-2) * sin


class PlacedAttention(nn.Module):
    """Attention of base places to places of `value_width` channels, with rotary positions and a norm inside."""

    cos: Tensor
    sin: Tensor

    def __init__(self, width: int, value_width: int, heads: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.heads = heads
        self.scaling = (width // heads) ** -0.5
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(value_width, width, bias=False)
        self.value = nn.Linear(value_width, width, bias=False)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)
        self.grid = grid
        self.register_buffer("cos", torch.empty(grid[0] * grid[1], width // heads), persistent=False)
        self.register_buffer("sin", torch.empty(grid[0] * grid[1], width // heads), persistent=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Nothing comes out at first."""
        initialise.tree(self)
        init.zeros_(self.out.weight)
        init.zeros_(self.out.bias)
        for buffer, value in zip((self.cos, self.sin), rotary(self.grid, self.cos.shape[1]), strict=True):
            init.copy_(buffer, value)

    def forward(self, x: Tensor, value: Tensor) -> Tensor:
        """Places x [B, N, C], value [B, N, D] -> [B, N, C]."""
        query, key, values = (
            layer(of).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, of in ((self.query, x), (self.key, value), (self.value, value))
        )
        query, key = (turn(t, self.cos, self.sin).to(values.dtype) for t in (query, key))
        mixed, _ = eager_attention(self, query, key, values, None, self.scaling)
        return self.out(self.norm(mixed.flatten(2)))


class SwiGLU(nn.Module):
    """[B, N, C] -> [B, N, C], with a norm inside; nothing comes out at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = width * 8 // 3
        self.gate, self.up = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.down = nn.Linear(hidden, width)
        self.init_weights()

    def init_weights(self) -> None:
        """See the class."""
        initialise.tree(self)
        init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.norm(F.silu(self.gate(x)) * self.up(x)))


class QuestionReader(nn.Module):
    """Learned tokens [K] that read a question, and base tokens if there are any: -> [B, K, W]."""

    def __init__(self, text_width: int, width: int, heads: int, depth: int, tokens: int, base_width: int = 0) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(tokens, width))
        self.text = nn.Linear(text_width, width)
        self.base = nn.Linear(base_width, width) if base_width else None
        self.blocks = nn.ModuleList(ReaderBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02; what is read keeps its variance."""
        initialise.tree(self)
        init.normal_(self.tokens, std=1.0)
        for layer in (self.text, self.base):
            if layer is not None:
                initialise.linear(layer, layer.in_features**-0.5)

    def forward(self, question: QuestionText, base: Tensor | None = None) -> Tensor:
        batch = question.mask.shape[0]
        words = self.text(F.layer_norm(question.embeddings, question.embeddings.shape[-1:]))
        # Counted over the words that are there, so that a question means the same however it is padded.
        places = (question.mask.long().cumsum(1) - 1).clamp_min(0)
        words = words + sinusoids(words.shape[1], words.shape[2]).to(words)[places]
        read = [self.tokens.to(words.dtype).expand(batch, -1, -1), words]
        there = [question.mask.new_ones(batch, len(self.tokens)), question.mask]
        if self.base is not None and base is not None:
            read.append(self.base(base))
            there.append(question.mask.new_ones(batch, base.shape[1]))
        hidden, seen = torch.cat(read, 1), torch.cat(there, 1)
        mask = torch.zeros_like(seen, dtype=hidden.dtype).masked_fill(~seen, torch.finfo(hidden.dtype).min)[:, None, None]
        for block in self.blocks:
            hidden = block(hidden, mask)
        return self.norm(hidden[:, : len(self.tokens)])


class ReaderBlock(nn.Module):
    """Pre-norm transformer block. [B, K, W] -> [B, K, W]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, eager_backend())
        self.mlp = FeedForward(width, 4 * width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


def sinusoids(count: int, width: int) -> Tensor:
    """Fixed position codes [count, width] (Vaswani et al., 2017, arXiv:1706.03762)."""
    frequencies = THETA ** (-torch.arange(0, width, 2, dtype=torch.float32) / width)
    angles = torch.arange(count, dtype=torch.float32)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[:, :width]


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [B, C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class RegBlock(nn.Module):
    """A RegNet-Y block (Radosavovic et al., 2020, arXiv:2003.13678): 1x1, grouped 3x3, squeeze-and-excitation, 1x1, added to its
    input; nothing is added at first. [B, C, H, W] -> [B, C, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        groups = max(1, width // 8) if width % 8 == 0 else 1
        squeezed = max(1, round(width / 4))
        self.first = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), ChannelNorm(width, eps=1e-6), nn.SiLU())
        grouped = nn.Conv2d(width, width, 3, padding=1, groups=groups, bias=False)
        self.second = nn.Sequential(grouped, ChannelNorm(width, eps=1e-6), nn.SiLU())
        self.squeeze = nn.Sequential(nn.Conv2d(width, squeezed, 1), nn.SiLU(), nn.Conv2d(squeezed, width, 1), nn.Sigmoid())
        self.third = nn.Conv2d(width, width, 1, bias=False)
        self.norm = ChannelNorm(width, eps=1e-6)
        self.init_weights()

    def init_weights(self) -> None:
        """See the class."""
        initialise.tree(self)
        init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.second(self.first(x))
        hidden = hidden * self.squeeze(hidden.mean((2, 3), keepdim=True))
        return x + self.norm(self.third(hidden))
