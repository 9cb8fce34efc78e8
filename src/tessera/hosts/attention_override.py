"""Overrides of one attention module, while the model keeps the kernel that it has.

The module gets its own copy of its configuration, which names a function of ours in transformers' registry; that function is
handed the kernel that the module used before. Masks and all other layers stay as they are.

Legend: B rows, H heads, G key-value heads, Q queries, K keys, D width of a head.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.errors import UserError

PADDING = 8
"""Channels that a head gains by a bias; fast kernels want widths in multiples of 8."""


_MARK = "_override_"
"""In the name of an implementation that overrides another."""


class Attend(Protocol):
    """Attends instead of `kernel`, which takes the arguments that follow it."""

    def __call__(
        self, kernel: Callable[..., Any], module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **kwargs: Any
    ) -> Any:
        """Query [B, H, Q, D], key and value [B, G, K, D] -> ([B, Q, H, D], weights or None)."""
        ...


def override_attention(attention: nn.Module, attend: Attend, undo: ExitStack) -> None:
    """`attention` attends by `attend` until `undo` is closed; what is installed on it later must be undone earlier.

    Raises `UserError` for eager attention that is no function which can be called.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    home = sys.modules[type(attention).__module__]
    registry: Any = getattr(home, "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
    before: Any = attention.config
    name = before._attn_implementation or "eager"
    kernel = registry[name] if name != "eager" else getattr(home, "eager_attention_forward", None)
    if kernel is None:
        raise UserError(f"the eager attention of {type(attention).__name__} cannot be overridden; load the model with sdpa.")
    further = list(inspect.signature(kernel).parameters)[5:]

    def overridden(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        if args:
            kwargs |= dict(zip(further, args, strict=False))
        return attend(kernel, module, query, key, value, attention_mask, **kwargs)

    own = f"{name}{_MARK}{id(attention):x}"  # the kernel's name stays a part of ours: models look for "flash" in it
    registry[own] = overridden
    settings = copy.copy(before)
    settings._attn_implementation_internal = own
    attention.config = settings

    def restore() -> None:
        attention.config = before
        del registry[own]

    undo.callback(restore)


def is_overridden(attention: nn.Module) -> bool:
    """Whether an override or a tap is installed on a module."""
    config: Any = attention.config
    return _MARK in str(config._attn_implementation)


def biased(
    kernel: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Any,
    queries: Tensor,
    keys: Tensor,
    **kwargs: Any,
) -> Any:
    """Attention whose scores gain queries [B, H, Q] times keys [B, K], without a mask being written out.

    The product is made by the kernel itself, from channels that heads gain: so every kernel works, causal ones and those without
    masks too. Rows of probabilities sum to 1 as ever. Raises `UserError` for attention that caps its scores.
    """
    if kwargs.get("softcap") is not None:
        raise UserError(f"{type(module).__name__} caps its scores, so nothing can be added to them here.")
    width = query.shape[-1]
    scaling = kwargs.pop("scaling", None)
    scaling = width**-0.5 if scaling is None else scaling
    more = F.pad((queries / scaling).to(query.dtype).unsqueeze(-1), (0, PADDING - 1))
    room = key.shape[2] - keys.shape[1]  # keys behind the prompt gain nothing
    flags = F.pad(keys.to(key.dtype), (0, room))[:, None, :, None].expand(-1, key.shape[1], -1, 1)
    output, weights = kernel(
        module,
        torch.cat([query, more], -1),
        torch.cat([key, F.pad(flags, (0, PADDING - 1))], -1),
        F.pad(value, (0, PADDING)),
        mask,
        scaling=scaling,
        **kwargs,
    )
    return output[..., : value.shape[-1]], weights
