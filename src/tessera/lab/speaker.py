"""A stand-in for a model: random logits from a token and an image, for exact claims about objectives.

Shapes: B rows, T tokens, M images of all rows that have placeholders, in order, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


class Speaker(nn.Module):
    """Logits [B, T, V] that depend on the token in front and, in rows with placeholders, on the mean colour of the image."""

    def __init__(self, words: int, image_token: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.image_token = image_token
        self.said = nn.Parameter(torch.randn(words, words, generator=generator))
        self.seen = nn.Parameter(torch.randn(3, words, generator=generator))

    def forward(
        self, input_ids: Tensor, pixel_values: Tensor | None = None, logits_to_keep: int = 0, **other: Any
    ) -> SimpleNamespace:
        """See the class; the last `logits_to_keep` positions, 0: all."""
        logits = self.said[input_ids]
        if pixel_values is not None:
            rows = (input_ids == self.image_token).any(1).nonzero()[:, 0]
            logits = logits.index_add(0, rows, (pixel_values.mean((2, 3)) @ self.seen)[:, None].expand(-1, logits.shape[1], -1))
        return SimpleNamespace(logits=logits[:, -logits_to_keep:] if logits_to_keep else logits)


def speakers() -> tuple[Speaker, Speaker, Any]:
    """Two speakers of the world's words, and a processor of small images (4 tokens each)."""
    from tessera.models.image_processing import TesseraImageProcessor
    from tessera.models.processing import TesseraProcessor
    from tessera.models.tokenizer import IMAGE, build_tokenizer
    from tessera.world.vocabulary import words

    tokenizer = build_tokenizer(words())
    processor = TesseraProcessor(TesseraImageProcessor(size=64), tokenizer, tokens_per_image=4, max_images=2, max_length=512)
    return Speaker(len(tokenizer), IMAGE, 0), Speaker(len(tokenizer), IMAGE, 1), processor


def rows_of(batch: Mapping[str, Tensor], row: int) -> list[tuple[list[int], list[int], list[int]]]:
    """A packed row written out: per segment its tokens, the places of those that are labelled, and these tokens.

    Each segment follows the shared prefix, as if it were alone.
    """
    ids, labels, segments = (batch[name][row].tolist() for name in ("input_ids", "labels", "segment_ids"))
    prefix = [i for i, s in zip(ids, segments, strict=True) if s == 0]
    found = []
    for segment in range(1, max(segments) + 1):
        own = [(i, label) for i, label, s in zip(ids, labels, segments, strict=True) if s == segment]
        places = [len(prefix) + n for n, (_, label) in enumerate(own) if label != -100]
        found.append((prefix + [i for i, _ in own], places, [label for _, label in own if label != -100]))
    return found
