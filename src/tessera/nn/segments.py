"""Attention and positions of packed sequences: several questions about the same images in one row.

Segment 0 is the shared prefix (images), segments 1, 2, ... are one question with its answer each, -1 is
padding. A token sees a key iff the key is not later, not padding, and in the same segment or in segment 0; so
every question reads exactly what it would read alone. Shapes: B rows, T queries, K keys (K - T of them
cached).
"""

from __future__ import annotations

import torch
from torch import Tensor


def segment_mask(segment_ids: Tensor, queries: int, attention_mask: Tensor | None = None) -> Tensor:
    """segment_ids [B, K] int64, attention_mask [B, K] or None -> [B, 1, queries, K] bool, True where a query
    sees a key.

    A padding token sees itself and nothing else, so that no row of the softmax is empty.
    """
    total = segment_ids.shape[1]
    places = torch.arange(total, device=segment_ids.device)
    asking = segment_ids[:, total - queries :]
    key_is_real = segment_ids >= 0
    if attention_mask is not None:
        key_is_real = key_is_real & attention_mask.bool()
    related = (asking[:, :, None] == segment_ids[:, None, :]) | (segment_ids[:, None, :] == 0)
    not_later = places[total - queries :, None] >= places[None, :]
    itself = places[total - queries :, None] == places[None, :]
    return ((related & not_later & key_is_real[:, None, :]) | itself)[:, None]


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as what eager attention adds to its scores: 0 where True, the lowest number where False."""
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def segment_positions(segment_ids: Tensor) -> Tensor:
    """[B, K] -> position_ids [B, K] int64.

    The prefix counts from 0, every question goes on from the prefix's length.
    """
    same = segment_ids[:, :, None] == segment_ids[:, None, :]
    rank = same.tril(-1).sum(-1)
    prefix = (segment_ids == 0).sum(1, keepdim=True)
    return torch.where(segment_ids == 0, rank, rank + prefix) * (segment_ids >= 0)
