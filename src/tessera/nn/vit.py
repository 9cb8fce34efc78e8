"""Layers of a pre-norm vision transformer whose attention goes through transformers' attention registry.

Shapes: B images, N tokens, D channels, H heads.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class Backend(Protocol):
    """Whoever knows the attention implementation in force: any transformers config."""

    _attn_implementation: Any


def eager_backend() -> Backend:
    """A backend for parts used outside a transformers model: plain matrix products."""
    return SimpleNamespace(_attn_implementation="eager")


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax(q k^T scaling + mask) v by matrix products.

    q, k, v [B, H, N, D/H] -> [B, N, H, D/H], weights [B, H, N, N].
    """
    weights = (query * scaling) @ key.transpose(-1, -2)
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(dim=-1)
    return (F.dropout(weights, dropout, module.training) @ value).transpose(1, 2), weights


class SelfAttention(nn.Module):
    """Multi-head self-attention with one fused projection. [B, N, D] -> [B, N, D]."""

    is_causal = False

    def __init__(self, width: int, heads: int, backend: Backend) -> None:
        super().__init__()
        self.config = backend  # read at every call, so that set_attn_implementation reaches this layer
        self.heads = heads
        self.scaling = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        batch, count, width = x.shape
        query, key, value = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation or "eager", eager_attention)
        mixed, _ = attend(self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0)
        return self.out(mixed.reshape(batch, count, width))


class FeedForward(nn.Module):
    """Two linear layers with GELU (tanh form). [B, N, D] -> [B, N, D]."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x), approximate="tanh"))
