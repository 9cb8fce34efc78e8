"""Generation over a model's own forward and cache: any language model, one question at a time.

Every question gets a copy of its prefix's cache, so nothing is assumed about what a cache holds: windows and recurrent states
work as they do in `generate`. Row i * Q + q is question q of item i, as in `tessera.generation.packed`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class CachedEngine:
    """A composed model of any kind."""

    column_bytes = 0
    """Nothing is allocated ahead."""

    def __init__(self, model: Any, suppressed: Sequence[int]) -> None:
        self.model = model
        self.suppressed = list(suppressed)

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """[images, 3, S, S] -> [images, n, E]."""
        features: Tensor = self.model.get_image_features(pixel_values)
        return features

    def prefix(self, ids: Tensor, features: Tensor | None) -> list[Any]:
        """`ids` [I, P], features [images in order, n, E] or None -> one cache per item."""
        shares = features.chunk(len(ids)) if features is not None else [None] * len(ids)
        return [
            self.model.model(input_ids=row[None], image_features=share, use_cache=True).past_key_values
            for row, share in zip(ids, shares, strict=True)
        ]

    def select(self, state: list[Any], items: Sequence[int]) -> list[Any]:
        """The state of some items, in the order named."""
        return [state[item] for item in items]

    def start(self, state: list[Any], questions: Sequence[Sequence[Sequence[int]]], steps: int) -> CachedRun:
        """Reads the questions (token ids per item and question, each item at least one); steps are not limited."""
        return CachedRun(self, state, questions)

    def forward(self, ids: Sequence[int], cache: Any) -> tuple[Tensor, Any]:
        """Token ids behind a cache (changed in place) -> logits [V] of the next token, and the cache."""
        device = self.model.get_input_embeddings().weight.device
        out = self.model(
            input_ids=torch.tensor([list(ids)], device=device),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits = out.logits[0, -1]
        logits[self.suppressed] = -torch.inf
        return logits, out.past_key_values


class CachedRun:
    """Some questions half answered; `logits [R, V]` are of the next token. Rows without a question hold zeros."""

    def __init__(self, engine: CachedEngine, state: list[Any], questions: Sequence[Sequence[Sequence[int]]]) -> None:
        self.engine = engine
        most = max(len(asked) for asked in questions)
        self.caches: list[Any] = []
        logits: list[Tensor | None] = []
        for cache, asked in zip(state, questions, strict=True):
            for question in asked:
                found, own = engine.forward(question, copy.deepcopy(cache))
                logits.append(found)
                self.caches.append(own)
            logits += [None] * (most - len(asked))
            self.caches += [None] * (most - len(asked))
        blank = torch.zeros_like(next(found for found in logits if found is not None))
        self.logits = torch.stack([blank if found is None else found for found in logits])

    def step(self, tokens: Tensor) -> None:
        """Appends one token to every row: tokens [R]."""
        logits = self.logits.clone()
        for row, (token, cache) in enumerate(zip(tokens.tolist(), self.caches, strict=True)):
            if cache is not None:
                logits[row], self.caches[row] = self.engine.forward([token], cache)
        self.logits = logits

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Lets go of all other rows; returns the rows that remain, as they were numbered."""
        remaining = sorted(rows)
        self.caches = [self.caches[row] for row in remaining]
        self.logits = self.logits[remaining]
        return remaining
