"""What a grounding part is, and how well its boxes fit: average precision and recall.

A part of socket `grounding` makes boxes with labels and scores of what a model puts out. Boxes are in the image's unit square,
(x0, y0, x1, y1), x to the right and y down; scores in 0..1, comparable between images.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.errors import UserError
from tessera.world.questions.boxes import box_iou
from tessera.world.scene import Box

if TYPE_CHECKING:
    from PIL import Image

COCO_THRESHOLDS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
_RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True, slots=True)
class Located:
    """A thing that was found."""

    label: str
    box: Box
    score: float = 1.0


class Grounder(ABC):
    """What a model says of images -> boxes with labels and scores."""

    @abstractmethod
    def locate(
        self, model: Any, processor: Any, images: Sequence[Image.Image], names: Sequence[Sequence[str]]
    ) -> list[list[Located]]:
        """What `model` finds in each image of the things named for it; of everything, where none are named.

        Nothing that the model puts out raises: what cannot be read as boxes is left out.
        """


Truths = Sequence[Sequence[tuple[str, Box]]]
"""Per image, (label, box) of everything that is to be found."""


def average_precision(found: Sequence[Sequence[Located]], truth: Truths, iou: float = 0.5, *, pooled: bool = False) -> float:
    """Average precision at one overlap, in 0..1, as COCO counts it: by falling score, each find takes the free thing of its label
    that it overlaps most; precision is the best at or beyond each of 101 recalls.

    The mean over labels that the truth has; pooled: one ranking of all labels, which says more of scores where each label is
    rare. 0 if there is nothing to find. Raises `UserError` unless `found` and `truth` are of the same images.
    """
    _check(found, truth)
    labels = sorted({label for things in truth for label, _ in things})
    if pooled:
        return _precision(found, truth, iou, None)
    return float(np.mean([_precision(found, truth, iou, label) for label in labels])) if labels else 0.0


def mean_average_precision(found: Sequence[Sequence[Located]], truth: Truths, *, pooled: bool = False) -> float:
    """The mean of `average_precision` over COCO's overlaps 0.5, 0.55, ..., 0.95."""
    return float(np.mean([average_precision(found, truth, iou, pooled=pooled) for iou in COCO_THRESHOLDS]))


def recall(found: Sequence[Sequence[Located]], truth: Truths, iou: float = 0.5) -> float:
    """The share of things that some find of their label overlaps enough; each find counts for one thing."""
    _check(found, truth)
    hits = _matches(found, truth, iou, None)
    return sum(hit for _, hit in hits) / max(1, sum(map(len, truth)))


def _check(found: Sequence[Sequence[Located]], truth: Truths) -> None:
    if len(found) != len(truth):
        raise UserError(f"there are finds for {len(found)} images, but the truth of {len(truth)}.")


def _matches(found: Sequence[Sequence[Located]], truth: Truths, iou: float, label: str | None) -> list[tuple[float, bool]]:
    """(score, hit) of all finds of a label (None: of all), by falling score, equal ones in their order."""
    ranked = [(f.score, image, f) for image, finds in enumerate(found) for f in finds if label in (None, f.label)]
    ranked.sort(key=lambda entry: -entry[0])
    free = [list(things) for things in truth]
    hits = []
    for score, image, find in ranked:
        overlaps = [(box_iou(find.box, box), at) for at, (name, box) in enumerate(free[image]) if name == find.label]
        best, at = max(overlaps, default=(0.0, -1), key=lambda entry: entry[0])
        hit = at >= 0 and best >= iou
        if hit:
            del free[image][at]
        hits.append((score, hit))
    return hits


def _precision(found: Sequence[Sequence[Located]], truth: Truths, iou: float, label: str | None) -> float:
    wanted = sum(label in (None, name) for things in truth for name, _ in things)
    hits = np.array([hit for _, hit in _matches(found, truth, iou, label)], dtype=np.float64)
    if not wanted or not len(hits):
        return 0.0
    right = hits.cumsum()
    precision, reached = right / np.arange(1, len(hits) + 1), right / wanted
    best = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(reached, _RECALLS - 1e-9, side="left")
    return float(np.mean([best[p] if p < len(best) else 0.0 for p in places]))
