"""Attention of one sequence to another, and the gated block that puts it into a language model.

Shapes: B rows, T tokens, S context tokens, W channels of the tokens, C of the context, H heads of h channels each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import initialization as init

from tessera.nn import initialise


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int, seen: Tensor | None = None) -> Tensor:
    """Softmax(q k^T / sqrt(h)) v by heads: query [B, T, H h], key and value [B, S, H h], seen [B, T, S] bool -> [B, T, H h].

    A query that sees nothing gets zeros.
    """
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if seen is not None:
        scores = scores.masked_fill(~seen[:, None], torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1)
    if seen is not None:  # else one that sees nothing would see everything alike
        weights = weights.masked_fill(~seen.any(-1)[:, None, :, None], 0)
    return (weights @ v).transpose(1, 2).flatten(2)


class NormedFeedForward(nn.Sequential):
    """LayerNorm, linear, GELU, linear, without biases. [..., W] -> [..., W]."""

    def __init__(self, width: int, multiple: int = 4) -> None:
        super().__init__(
            nn.LayerNorm(width),
            nn.Linear(width, width * multiple, bias=False),
            nn.GELU(),
            nn.Linear(width * multiple, width, bias=False),
        )


class CrossAttention(nn.Module):
    """Normalised tokens [B, T, W] attend to a context [B, S, C] -> [B, T, W]."""

    def __init__(self, width: int, context: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_width
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, inner, bias=False)
        self.key_value = nn.Linear(context, 2 * inner, bias=False)
        self.out = nn.Linear(inner, width, bias=False)

    def forward(self, tokens: Tensor, context: Tensor, seen: Tensor | None = None) -> Tensor:
        """`seen` [B, T, S] bool: which part of the context each token sees."""
        key, value = self.key_value(context).chunk(2, dim=-1)
        return self.out(attend(self.query(self.norm(tokens)), key, value, self.heads, seen))


class GatedCrossAttention(nn.Module):
    """x + tanh(a) attention(x, context), then x + tanh(b) feed_forward(x); a and b begin at 0, where it is the identity."""

    def __init__(self, width: int, context: int, heads: int = 8, head_width: int = 64, multiple: int = 4) -> None:
        super().__init__()
        self.attention = CrossAttention(width, context, heads, head_width)
        self.attention_gate = nn.Parameter(torch.empty(1))
        self.feed_forward = NormedFeedForward(width, multiple)
        self.feed_forward_gate = nn.Parameter(torch.empty(1))
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02; both gates closed."""
        initialise.tree(self)
        init.zeros_(self.attention_gate)
        init.zeros_(self.feed_forward_gate)

    def forward(self, x: Tensor, context: Tensor | None, seen: Tensor | None = None) -> Tensor:
        """Tokens x [B, T, W], context [B, S, C] or None, seen [B, T, S] -> [B, T, W].

        Without context only the second half acts.
        """
        if context is not None:
            x = x + self.attention_gate.tanh() * self.attention(x, context, seen)
        return x + self.feed_forward_gate.tanh() * self.feed_forward(x)
