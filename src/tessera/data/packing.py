"""Several questions about the same images in one sequence, so that the images are encoded once.

A packed sequence is a shared prefix (segment 0: bos and images) followed by one segment (1, 2, ...) per
question with its answer. A token sees the prefix and its own segment only, and positions of every segment
start at the prefix length, so the loss equals that of one sequence per question (`unpack`).

Legend: T tokens of a sequence, B sequences of a batch, P tokens of the prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tessera.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100
"""Label of a token that bears no loss."""
PADDING = -1
"""Segment of padding."""
MULTIPLE = 8
"""Batches are padded to a multiple of this."""

Ids = Sequence[int] | NDArray[np.integer[Any]]
Item = tuple[Ids, Ids, float | None]
"""(question ids, answer ids, loss weight of each answer token or None for the default)."""


@dataclass(frozen=True, slots=True)
class Packed:
    """One packed sequence, all arrays [T]."""

    input_ids: NDArray[np.int64]
    labels: NDArray[np.int64]
    """Equal to `input_ids` on answers (end token included), else -100; not shifted."""
    segment_ids: NDArray[np.int64]
    """0 = prefix, 1.. = questions."""
    position_ids: NDArray[np.int64]
    loss_weights: NDArray[np.float32]
    """Weight of each label's loss; 0 where there is no label."""
    questions: int
    left_out: int
    """Items that did not fit."""

    def __len__(self) -> int:
        return len(self.input_ids)


def pack(prefix_ids: Ids, items: Sequence[Item], max_length: int, *, eos_id: int | None = None) -> Packed:
    """Packs `items` behind `prefix_ids` greedily, in order; items that do not fit are left out and counted.

    `eos_id` is appended to every answer; None: the answers end with it already. An answer of n tokens (end
    token included) has weight n**-0.5 per token by default, between the mean over tokens and the mean over
    answers. Raises `UserError` when the prefix alone is too long, or a question or an answer is empty.
    """
    prefix = np.asarray(prefix_ids, dtype=np.int64)
    size = len(prefix)
    if size > max_length:
        raise UserError(
            f"the images and the beginning of the text take {size} tokens, {size - max_length} more than the "
            f"{max_length} of a sequence. Use fewer or smaller images, or a longer sequence."
        )
    ids, labels, weights = [prefix], [np.full(size, IGNORED)], [np.zeros(size, dtype=np.float32)]
    segments, positions = [np.zeros(size, dtype=np.int64)], [np.arange(size)]
    used, questions = size, 0
    for number, (question_ids, answer_ids, weight) in enumerate(items):
        asked, answered = len(question_ids), len(answer_ids) + (eos_id is not None)
        if not asked or not len(answer_ids):
            raise UserError(f"item {number} has an empty {'answer' if asked else 'question'}; both need a token at least.")
        length = asked + answered
        if used + length > max_length:
            continue
        questions += 1
        tokens = np.empty(length, dtype=np.int64)
        tokens[:asked] = question_ids
        tokens[asked : asked + len(answer_ids)] = answer_ids
        if eos_id is not None:
            tokens[-1] = eos_id
        label = tokens.copy()
        label[:asked] = IGNORED
        token_weights = np.zeros(length, dtype=np.float32)
        token_weights[asked:] = answered**-0.5 if weight is None else weight
        ids.append(tokens)
        labels.append(label)
        weights.append(token_weights)
        segments.append(np.full(length, questions))
        positions.append(np.arange(size, size + length))
        used += length
    return Packed(
        input_ids=np.concatenate(ids),
        labels=np.concatenate(labels),
        segment_ids=np.concatenate(segments),
        position_ids=np.concatenate(positions),
        loss_weights=np.concatenate(weights),
        questions=questions,
        left_out=len(items) - questions,
    )


def unpack(packed: Packed) -> list[Packed]:
    """One sequence (prefix and a single question, segment 1) per question of `packed`, in order."""
    result = []
    for segment in range(1, packed.questions + 1):
        keep = (packed.segment_ids == 0) | (packed.segment_ids == segment)
        result.append(
            Packed(
                input_ids=packed.input_ids[keep],
                labels=packed.labels[keep],
                segment_ids=np.minimum(packed.segment_ids[keep], 1),
                position_ids=packed.position_ids[keep],
                loss_weights=packed.loss_weights[keep],
                questions=1,
                left_out=0,
            )
        )
    return result


def collate(
    packs: Sequence[Packed], pixel_values: Any = None, *, pad_id: int = 0, length: int | None = None
) -> dict[str, Tensor]:
    """Batch of packed sequences, padded at the right to `length` or to the longest, rounded up to 8s.

    `pixel_values [N, 3, H, W]` (array or tensor; all images of the batch in order) is passed on when given.
    Gives int64 [B, T] input_ids, labels, segment_ids (padding -1), position_ids; float32 [B, T] loss_weights.
    """
    import torch

    longest = max(len(p) for p in packs)
    total = length if length is not None else -(-longest // MULTIPLE) * MULTIPLE
    if longest > total:
        raise UserError(f"a sequence has {longest} tokens, {longest - total} more than the {total} of the batch.")
    shape = (len(packs), total)
    arrays: dict[str, NDArray[Any]] = {
        "input_ids": np.full(shape, pad_id, dtype=np.int64),
        "labels": np.full(shape, IGNORED, dtype=np.int64),
        "segment_ids": np.full(shape, PADDING, dtype=np.int64),
        "position_ids": np.zeros(shape, dtype=np.int64),
        "loss_weights": np.zeros(shape, dtype=np.float32),
    }
    for row, packed in enumerate(packs):
        for name, array in arrays.items():
            array[row, : len(packed)] = getattr(packed, name)
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    if pixel_values is not None:
        batch["pixel_values"] = torch.from_numpy(pixel_values) if isinstance(pixel_values, np.ndarray) else pixel_values
    return batch
