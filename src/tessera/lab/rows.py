"""Rows of questions with their answers: what trainings on pictures are given, and which answers a model has right.

    inputs = packed(processor, [[(question_ids, answer_ids, None)], ...])
    inputs["visual_features"] = features_of(model, pixels_of(processor, pictures))
    labels = inputs.pop("labels")
    right_answers(model(**inputs).logits, labels, inputs["segment_ids"])

Imports torch inside functions only.

Legend: I images of side S, B rows, T tokens, N visual tokens in front of the connector, D channels, V words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tessera.data.packing import IGNORED, Item, collate, pack
from tessera.errors import TesseraError

if TYPE_CHECKING:
    from torch import Tensor


def packed(processor: Any, rows: Sequence[Sequence[Item]], images: int = 1) -> dict[str, Tensor]:
    """Inputs [B, T] with labels: the questions of a row stand behind the same `images` and are blind to each other.

    Raises `TesseraError` where they do not fit.
    """
    prefix = processor.prefix_ids(images)
    packs = [pack(prefix, items, processor.max_length) for items in rows]
    if lost := sum(pack.left_out for pack in packs):
        raise TesseraError(
            f"{lost} questions do not fit their rows of {processor.max_length} tokens behind {images} pictures: ask fewer of a "
            "picture, or show fewer."
        )
    return collate(packs)


def pixels_of(processor: Any, pictures: Sequence[Any]) -> Tensor:
    """What a model reads of pictures, float32 [I, 3, S, S]."""
    found: Tensor = processor.image_processor(list(pictures), return_tensors="pt")["pixel_values"]
    return found


def features_of(model: Any, pixels: Tensor, chunk: int = 32) -> Tensor:
    """What the encoders give for pixels [I, 3, S, S], `chunk` images at once, without gradients: float32 [I, N, D]."""
    import torch

    with torch.no_grad():
        return torch.cat([model.encode_images(some).features for some in pixels.split(chunk)])


def right_answers(logits: Tensor, labels: Tensor, segments: Tensor) -> list[list[bool]]:
    """Of every row, of every segment with labels: whether all of them are the likeliest tokens, the end included. That is what
    greedy decoding would say.

    logits [B, T, V] under teacher forcing, labels [B, T] (not shifted), segments [B, T].
    """
    likeliest, wanted, of = logits[:, :-1].argmax(-1), labels[:, 1:], segments[:, 1:]
    labelled = wanted != IGNORED
    wrong = (likeliest != wanted) & labelled
    return [
        [not bool(wrong[row][of[row] == segment].any()) for segment in of[row][labelled[row]].unique().tolist()]
        for row in range(len(labels))
    ]
