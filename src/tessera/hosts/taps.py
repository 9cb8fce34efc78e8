"""Attention of single modules, captured while the fast kernels run.

One attention module gets its own copy of its configuration, which names an attention function of ours in transformers' registry;
that function computes the probabilities that are wanted and then calls the kernel that the model uses. Nothing else changes.

Legend: B rows, H heads, G key-value heads, Q queries, K keys, D width of a head.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from tessera.errors import TesseraError
from tessera.hosts.part import Tap

Listener: TypeAlias = Callable[[nn.Module, Tensor, Tensor, Any, float | None], None]
"""Called with module, query [B, H, Q, D], key [B, G, K, D], mask, scaling (None: 1 / sqrt(D)) before the kernel runs."""

AT_ONCE = 2**24
"""Most attention probabilities that are held at one time."""


def listen(attention: nn.Module, listener: Listener, undo: ExitStack) -> None:
    """Calls `listener` whenever `attention` attends, until `undo` is closed. Several listeners may share a module."""
    listeners: list[Listener] | None = attention.__dict__.get("_tessera_listeners")
    if listeners is None:
        listeners = attention.__dict__["_tessera_listeners"] = []
        _divert(attention, listeners)
    listeners.append(listener)
    own = listeners

    def remove() -> None:
        own.remove(listener)
        if not own:
            _restore(attention)

    undo.callback(remove)


def _registry(attention: nn.Module) -> Any:
    """The registry that the module's own file reads."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return getattr(sys.modules[type(attention).__module__], "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)


def _divert(attention: nn.Module, listeners: list[Listener]) -> None:
    config: Any = attention.config
    name = config._attn_implementation or "eager"
    registry = _registry(attention)
    if name == "eager":
        kernel = getattr(sys.modules[type(attention).__module__], "eager_attention_forward", None)
        if kernel is None:
            raise TesseraError(f"the eager attention of {type(attention).__name__} is not a function that can be called.")
    else:
        kernel = registry[name]

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        scaling = kwargs.get("scaling", args[0] if args else None)
        for listener in tuple(listeners):
            listener(module, query, key, attention_mask, scaling)
        return kernel(module, query, key, value, attention_mask, *args, **kwargs)

    # the kernel's name stays a part of ours: models look for "flash" in it
    own_name = f"{name}_tapped_{id(attention):x}"
    registry[own_name] = attend
    attention.__dict__["_tessera_config"] = config
    own: Any = copy.copy(config)
    own._attn_implementation_internal = own_name
    attention.config = own


def _restore(attention: nn.Module) -> None:
    own: Any = attention.config
    del _registry(attention)[own._attn_implementation]
    attention.config = attention.__dict__.pop("_tessera_config")
    del attention.__dict__["_tessera_listeners"]


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
    """Attention probabilities, averaged over heads, without a gradient: float32 [B, K], for "full" [B, Q, K].

    last  [B] int64, the query of "last"; None: the last one
    real  [B, Q] bool, queries that count for "received"; None: all
    """
    rows, queries = query.shape[0], query.shape[2]
    device = query.device
    if kind == "last":
        chosen = torch.full((rows, 1), queries - 1, device=device) if last is None else last.view(rows, 1)
    elif kind == "class":
        chosen = torch.zeros(rows, 1, dtype=torch.int64, device=device)
    else:
        chosen = torch.arange(queries, device=device).expand(rows, queries)
    step = max(1, AT_ONCE // max(1, rows * query.shape[1] * key.shape[2]))
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
    (rows, heads, queries, width), (groups, keys) = query.shape, key.shape[1:3]
    count = chosen.shape[1]
    picked = query.gather(2, chosen[:, None, :, None].expand(rows, heads, count, width))
    grouped = picked.view(rows, groups, heads // groups, count, width)
    scores = (grouped @ key[:, :, None].transpose(-1, -2)).float() * (width**-0.5 if scaling is None else scaling)
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
