"""Attention of single modules, captured while the fast kernels run.

An override that changes nothing computes the probabilities that are wanted, and then calls the kernel that the model uses.

Legend: B rows, H heads, G key-value heads, Q queries, K keys, D width of a head.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tessera.hosts.attention_override import override_attention
from tessera.hosts.values import Tap

Listener: TypeAlias = Callable[[nn.Module, Tensor, Tensor, Any, float | None], None]
"""Called with module, query [B, H, Q, D], key [B, G, K, D], mask, scaling (None: 1 / sqrt(D)) before the kernel runs."""

AT_ONCE = 2**24
"""Most attention probabilities that are held at one time."""


def listen(attention: nn.Module, listener: Listener, undo: ExitStack) -> None:
    """Calls `listener` whenever `attention` attends, until `undo` is closed. Several listeners may share a module."""
    shared: _Listeners | None = attention.__dict__.get("_tessera_listeners")
    if shared is None:
        shared = _Listeners()
        override_attention(attention, shared.attend, shared.undo)
        attention.__dict__["_tessera_listeners"] = shared
    own = shared
    own.listeners.append(listener)

    def remove() -> None:
        own.listeners.remove(listener)
        if not own.listeners:
            own.undo.close()
            del attention.__dict__["_tessera_listeners"]

    undo.callback(remove)


class _Listeners:
    """Those of one module, which attends as ever behind them."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.undo = ExitStack()

    def attend(
        self, kernel: Callable[..., Any], module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        for listener in tuple(self.listeners):
            listener(module, query, key, mask, kwargs.get("scaling"))
        return kernel(module, query, key, value, mask, **kwargs)


@torch.no_grad()
def probabilities(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Any,
    scaling: float | None,
    kind: Tap,
    last: Tensor | None = None,
    real: Tensor | None = None,
) -> Tensor:
    """Attention probabilities (of "class logits" scores), averaged over heads, without a gradient: float32 [B, K], of "full"
    [B, Q, K].

    last  [B] int64, the query of "last"; None: the last one
    real  [B, Q] bool, queries that count for "received"; None: all
    """
    rows, queries = query.shape[0], query.shape[2]
    device = query.device
    if kind == "last":
        chosen = torch.full((rows, 1), queries - 1, device=device) if last is None else last.view(rows, 1)
    elif kind in ("class", "class logits"):
        chosen = torch.zeros(rows, 1, dtype=torch.int64, device=device)
    else:
        chosen = torch.arange(queries, device=device).expand(rows, queries)
    step = max(1, AT_ONCE // max(1, rows * query.shape[1] * key.shape[2]))
    if kind == "class logits":
        return _scores(query, key, scaling, chosen).mean((1, 2))[:, 0]
    found = [_rows(module, query, key, mask, scaling, part) for part in chosen.split(step, 1)]
    if kind == "full":
        return torch.cat(found, 1)
    if kind == "received":
        weights = torch.ones(rows, queries, device=device) if real is None else real.float()
        total = sum((p * w[..., None]).sum(1) for p, w in zip(found, weights.split(step, 1), strict=True))
        assert isinstance(total, Tensor)
        return total / weights.sum(1, keepdim=True).clamp(min=1)
    return found[0][:, 0]


def _rows(module: nn.Module, query: Tensor, key: Tensor, mask: Any, scaling: float | None, chosen: Tensor) -> Tensor:
    """Rows `chosen` [B, R] of the attention matrix, averaged over heads: [B, R, K]."""
    (rows, heads, queries, _), (groups, keys) = query.shape, key.shape[1:3]
    count = chosen.shape[1]
    scores = _scores(query, key, scaling, chosen)
    if isinstance(mask, Tensor) and mask.dim() == 4:
        part = mask[..., :keys].expand(rows, mask.shape[1], queries, keys)
        part = part.gather(2, chosen[:, None, :, None].expand(rows, mask.shape[1], count, keys))
        part = part[:, :, None] if mask.shape[1] == 1 else part.view(rows, groups, heads // groups, count, keys)
        scores = scores.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else scores + part.float()
    else:
        if isinstance(mask, Tensor) and mask.dim() == 2:
            scores = scores.masked_fill(~mask[:, None, None, None, :keys].bool(), -torch.inf)
        if getattr(module, "is_causal", False):
            later = torch.arange(keys, device=query.device) > (chosen + keys - queries)[..., None]
            scores = scores.masked_fill(later[:, None, None], -torch.inf)
    found: Tensor = scores.softmax(-1).nan_to_num(0).mean((1, 2))
    return found


def _scores(query: Tensor, key: Tensor, scaling: float | None, chosen: Tensor) -> Tensor:
    """Scores of the rows `chosen` [B, R] in front of mask and softmax: float32 [B, G, H / G, R, K]."""
    rows, heads, _, width = query.shape
    groups, count = key.shape[1], chosen.shape[1]
    picked = query.gather(2, chosen[:, None, :, None].expand(rows, heads, count, width))
    grouped = picked.view(rows, groups, heads // groups, count, width)
    return (grouped @ key[:, :, None].transpose(-1, -2)).float() * (width**-0.5 if scaling is None else scaling)
