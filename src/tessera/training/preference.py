"""What objectives over several answers to one question share: packing, log-probabilities of answers, the DPO loss.

The answers to a question stand in consecutive segments of one packed sequence behind its images, so that all of them are scored
by one forward: answer a (of A) to question q is segment 1 + q A + a.

Source of the loss: Rafailov et al., "Direct Preference Optimization", 2023, arXiv:2305.18290.

Legend: B sequences, T tokens, S segments of a sequence, M labelled tokens, V vocabulary, Q questions, A answers to each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.data.packing import Item, Packed, pack

Asked = tuple[str, tuple[str, ...]]
"""A question and the answers to it that are scored."""


def pack_answers(processor: Any, images: int, asked: Sequence[Asked]) -> Packed:
    """One sequence of all answers to all questions about the same `images` images (0: without any).

    Every answer token bears weight 1: the log-probability of an answer is the sum over its tokens.
    """
    prefix = processor.prefix_ids(images)
    pairs = [(question, answer) for question, answers in asked for answer in answers]
    ids: list[list[int]] = processor.tokenizer(
        [text for question, answer in pairs for text in (f"<user>{question}<assistant>", f"{answer}<eos>")],
        add_special_tokens=False,
    )["input_ids"]
    items: list[Item] = [(ids[i], ids[i + 1], 1.0) for i in range(0, len(ids), 2)]
    return pack(prefix, items, len(prefix) + sum(map(len, ids)))


@dataclass(frozen=True, slots=True)
class Scored:
    """The labelled tokens of a batch: logits [M, V] float32 in front of them, the tokens [M], their place [M] in [B * S], and
    the shape (B, S)."""

    logits: Tensor
    tokens: Tensor
    place: Tensor
    shape: tuple[int, int]

    def sums(self, tokens: Tensor | None = None) -> Tensor:
        """[B, S]: summed log-probability of each segment's labelled tokens, or of other `tokens` [M] in their places."""
        wanted = self.tokens if tokens is None else tokens
        each = -F.cross_entropy(self.logits, wanted, reduction="none")
        rows, segments = self.shape
        return each.new_zeros(rows * segments).index_add(0, self.place, each).view(rows, segments)

    def lengths(self) -> Tensor:
        """[B, S] int64: labelled tokens of each segment, 0 where a sequence has fewer segments."""
        rows, segments = self.shape
        return torch.bincount(self.place, minlength=rows * segments).view(rows, segments)


_TEXT = ("input_ids", "attention_mask", "position_ids", "segment_ids")
_IMAGES = ("pixel_values", "visual_features", "image_features")


def score(model: Any, batch: Mapping[str, Tensor]) -> Scored:
    """Scores the labelled tokens of `batch` with any model that returns logits [B, T, V].

    Only positions from the first labelled one on are asked for. Without `segment_ids` each row is one segment.
    """
    labels, segments = batch["labels"], batch.get("segment_ids")
    targets = labels[:, 1:]
    keep = targets != -100
    if segments is not None:
        keep = keep & (segments[:, 1:] == segments[:, :-1])
    first = int(keep.any(0).int().argmax())
    inputs = {name: value for name, value in batch.items() if name in _TEXT or name in _IMAGES}
    logits = model(**inputs, logits_to_keep=labels.shape[1] - first).logits
    number = torch.ones_like(targets) if segments is None else segments[:, 1:]
    rows, count = len(labels), max(1, int(number.max()))
    row, column = keep.nonzero(as_tuple=True)
    return Scored(
        logits=logits[row, column - first].float(),
        tokens=targets[row, column],
        place=row * count + number[row, column] - 1,
        shape=(rows, count),
    )


def dpo(margin: Tensor, beta: float) -> Tensor:
    """-log sigmoid(beta margin), elementwise; the margin is the policy's log-ratio of two answers minus the reference's."""
    return -F.logsigmoid(beta * margin)
