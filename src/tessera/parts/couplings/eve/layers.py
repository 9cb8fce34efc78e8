"""EVE's own layers: from pixels to tokens, and from hidden states to a teacher's features.

Shapes: M images, H x W pixels, h x w windows, s tokens of a set, N tokens, D channels, E of the language model, C of the teacher.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class OneQuery(nn.Module):
    """A token [..., D] attends to a set [..., s, D] -> token [..., D], added to itself. The scale is that of the whole width."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width, bias=False))
        self.key_value = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width, bias=False))
        self.out = nn.Linear(width, width)

    def forward(self, token: Tensor, tokens: Tensor) -> Tensor:
        query = self.query(token).unflatten(-1, (self.heads, -1))[..., None, :, :]
        key, value = (x.unflatten(-1, (self.heads, -1)) for x in self.key_value(tokens).chunk(2, dim=-1))
        weights = ((query * key).sum(-1) * token.shape[-1] ** -0.5).softmax(-2)
        return token + self.out((weights[..., None] * value).sum(-3).flatten(-2))


class PatchEmbedding(nn.Module):
    """Pixels [M, 3, H, W] -> [M, h (w + 1) + 1, D]: a class token, then rows of windows, each with a token that ends it."""

    def __init__(self, width: int, patch: int, window: int, heads: int) -> None:
        super().__init__()
        self.window = window
        self.patches = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_token = nn.Parameter(torch.empty(width))
        self.row_end = nn.Parameter(torch.empty(width))
        self.local = OneQuery(width, heads)
        self.whole = OneQuery(width, heads)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.patches(pixels)
        images, _, height, width = patches.shape
        h, w = height // self.window, width // self.window
        cut = patches[..., : h * self.window, : w * self.window].unflatten(2, (h, self.window)).unflatten(4, (w, self.window))
        inside = cut.permute(0, 2, 4, 3, 5, 1).flatten(3, 4)  # [M, h, w, window^2, D]
        windows = self.local(inside.mean(3), inside)
        overall = self.whole(self.class_token.expand(images, -1), windows.flatten(1, 2))
        ends = self.row_end.expand(images, h, 1, -1)
        rows = torch.cat([windows, ends], dim=2).flatten(1, 2)
        return torch.cat([overall[:, None], rows], dim=1)


class PatchAligning(nn.Module):
    """Hidden states of one image's tokens at several layers -> features to be compared with a teacher's.

    levels [N, E] each, from the last layer to the first -> [N, C]: the last layer's, and what its query finds in the others.
    """

    def __init__(self, width: int, teacher: int, levels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.levels = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, teacher, bias=False)) for _ in range(levels)
        )
        self.last = nn.Linear(width, teacher)
        self.out = nn.Linear(teacher, teacher)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        read = [project(level).unflatten(-1, (self.heads, -1)) for project, level in zip(self.levels, levels, strict=True)]
        query, others = read[0][..., None, :, :], torch.stack(read[1:], dim=-3)
        weights = ((query * others).sum(-1) * self.out.in_features**-0.5).softmax(-2)
        return self.last(levels[0]) + self.out((weights[..., None] * others).sum(-3).flatten(-2))
