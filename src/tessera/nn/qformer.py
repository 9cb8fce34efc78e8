"""The Q-Former's layers: learned queries and text in one self-attention, images by cross-attention of the queries alone.

BERT's post-norm layers, in which queries and text have feed-forward networks of their own (Li et al., "BLIP-2", 2023,
arXiv:2301.12597; Dai et al., "InstructBLIP", 2023, arXiv:2305.06500).

Shapes: B images, K queries, Q tokens of text, T = K + Q, N visual tokens, D width, V width of the visual tokens, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, mask: Tensor | None) -> Tensor:
    """Multi-head attention of projected [B, T, D] over [B, S, D]; mask [B, S] bool, False where nothing is. -> [B, T, D]."""

    def by_head(x: Tensor) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    seen = None if mask is None else mask[:, None, None, :]
    mixed = F.scaled_dot_product_attention(by_head(query), by_head(key), by_head(value), attn_mask=seen)
    return mixed.transpose(1, 2).flatten(2)


def gather(text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Text [B, Q, D] and its mask [B, Q] without what no row has: what is there moves to the front, in order."""
    longest = int(mask.sum(1).max()) if mask.numel() else 0
    order = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :longest]
    return text.gather(1, order[..., None].expand(-1, -1, text.shape[2])), mask.gather(1, order)


class Attention(nn.Module):
    """norm(x + out(attention)), to itself or to a memory of `memory_width` channels. [B, T, D] -> [B, T, D]."""

    def __init__(self, width: int, heads: int, memory_width: int, eps: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(memory_width, width)
        self.value = nn.Linear(memory_width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None) -> Tensor:
        """Memory [B, S, `memory_width`], mask [B, S] bool or None."""
        mixed = attend(self.query(x), self.key(memory), self.value(memory), self.heads, mask)
        return self.norm(x + self.out(mixed))


class PostNormFeedForward(nn.Module):
    """norm(x + down(gelu(up(x)))). [B, T, D] -> [B, T, D]."""

    def __init__(self, width: int, hidden: int, eps: float) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.down(F.gelu(self.up(x))))


class QFormerLayer(nn.Module):
    """Self-attention of queries and text; cross-attention of the queries, if the layer `sees`; a feed-forward for each kind."""

    def __init__(self, width: int, heads: int, hidden: int, memory_width: int, *, sees: bool, reads: bool, eps: float) -> None:
        super().__init__()
        self.attention = Attention(width, heads, width, eps)
        self.cross = Attention(width, heads, memory_width, eps) if sees else None
        self.of_queries = PostNormFeedForward(width, hidden, eps)
        self.of_text = PostNormFeedForward(width, hidden, eps) if reads else None

    def forward(self, x: Tensor, mask: Tensor | None, memory: Tensor, memory_mask: Tensor | None, queries: int) -> Tensor:
        """X [B, K + Q, D], mask [B, K + Q] bool; memory [B, N, V], memory_mask [B, N] bool; queries K."""
        x = self.attention(x, x, mask)
        asking, text = x[:, :queries], x[:, queries:]
        if self.cross is not None:
            asking = self.cross(asking, memory, memory_mask)
        asking = self.of_queries(asking)
        if self.of_text is None or not text.shape[1]:
            return asking
        return torch.cat([asking, self.of_text(text)], dim=1)


class QFormer(nn.Module):
    """Queries [B, K, D], text embeddings [B, Q, D] or none, visual tokens [B, N, V] -> queries [B, K, D].

    reads: whether there is text; every `every`-th layer sees the image, beginning with the first; positions: most text tokens.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        heads: int,
        hidden: int,
        memory_width: int,
        *,
        every: int = 2,
        reads: bool = True,
        positions: int = 512,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.positions = nn.Embedding(positions, width) if reads else None
        self.norm = nn.LayerNorm(width, eps=eps)
        self.layers = nn.ModuleList(
            # What the last layer makes of the text is read by nobody.
            QFormerLayer(width, heads, hidden, memory_width, sees=i % every == 0, reads=reads and i < depth - 1, eps=eps)
            for i in range(depth)
        )

    def forward(
        self,
        queries: Tensor,
        memory: Tensor,
        memory_mask: Tensor | None = None,
        text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:
        """text_mask [B, Q] bool, False at padding, which stands behind the text (see `gather`)."""
        count, x, mask = queries.shape[1], queries, None
        if text is not None and text.shape[1] and self.positions is not None:
            places = self.positions.weight[: text.shape[1]].to(text.dtype)
            x = torch.cat([queries, text + places], dim=1)
            mask = None if text_mask is None else F.pad(text_mask, (count, 0), value=True)
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask, memory, memory_mask, count)
        return x[:, :count]
