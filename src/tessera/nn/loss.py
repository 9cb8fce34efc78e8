"""The next-token loss of a language model, computed at labelled positions alone.

Shapes: B rows, T tokens, E width, V vocabulary, M labelled positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class LossSums(NamedTuple):
    """Unnormalised sums, so that micro-batches and processes add up exactly; loss = total / weight.

    Scalars, float32.
    """

    total: Tensor
    weight: Tensor

    def mean(self) -> Tensor:
        """Total / weight; 0 when nothing is labelled."""
        return self.total / self.weight.clamp_min(torch.finfo(self.weight.dtype).tiny)


def next_token_loss(
    hidden: Tensor,
    labels: Tensor,
    head: Callable[[Tensor], Tensor],
    loss_weights: Tensor | None = None,
    segment_ids: Tensor | None = None,
) -> LossSums:
    """Cross-entropy of the next token at labelled positions only.

    hidden [B, T, E]; labels [B, T] int64, not shifted, -100 ignored; loss_weights [B, T], the weight of the
    label at the same place; segment_ids [B, T]: a segment's first token is not a target, because the token
    before it belongs to another question. `head` maps [M, E] to logits [M, V]: only M rows go through it,
    which for short answers saves most of its work.
    """
    targets = labels[:, 1:]
    keep = targets != -100
    if segment_ids is not None:
        keep = keep & (segment_ids[:, 1:] == segment_ids[:, :-1])
    logits = head(hidden[:, :-1][keep]).float()
    each = F.cross_entropy(logits, targets[keep], reduction="none")
    weight = torch.ones_like(each) if loss_weights is None else loss_weights[:, 1:][keep].to(each.dtype)
    return LossSums((each * weight).sum(), weight.sum())
