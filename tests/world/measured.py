"""A sample as measured by the checker of questions: from its records and its drawing, never through the question makers.

A `Seen` is one thing of one frame: its record, its names, its box, and its visible share by its rendered masks.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tessera.world.concepts import concepts
from tessera.world.dataset import Sample
from tessera.world.render import masks
from tessera.world.scene import Box

EPS = 1e-6
HALF = 0.5
PIXELS, LARGER = 3.0, 4  # how far a drawn outline may end from the box that the truth states

Shown = tuple[int, Box]


@dataclass(frozen=True)
class Seen:
    """One thing of one frame: `names` are all words for it, `side` the root of its box's area, `record` its `Thing`."""

    frame: int
    name: str
    names: frozenset[str]
    category: str
    box: Box
    x: float
    y: float
    side: float
    visible: float
    record: Any

    @property
    def shown(self) -> Shown:
        return self.frame, self.box


class Facts:
    """A sample as measured: `frames[f]` are its things; `faults` what its truth and its drawing disagree about."""

    def __init__(self, sample: Sample) -> None:
        self.sample = sample
        self.faults: list[str] = []
        self.frames = [self._frame(i) for i in range(len(sample.frames))]

    def _frame(self, index: int) -> list[Seen]:
        scene = self.sample.frames[index]
        full, visible = self.sample.masks(index) if scene.things else (None, None)
        found = []
        for i, (record, truth) in enumerate(zip(scene.things, self.sample.truth(index), strict=True)):
            concept = concepts()[record.concept]
            share = truth.visible
            if full is not None and visible is not None:
                share = float(visible[i].sum() / max(1, full[i].sum()))
                self._compare(index, i, full[i], share)
            x0, y0, x1, y1 = truth.box
            found.append(
                Seen(
                    frame=index,
                    name=concept.name,
                    names=frozenset((concept.name, *concept.synonyms)),
                    category=concept.category,
                    box=truth.box,
                    x=(x0 + x1) / 2,
                    y=(y0 + y1) / 2,
                    side=math.sqrt((x1 - x0) * (y1 - y0)),
                    visible=share,
                    record=record,
                )
            )
        return found

    def _compare(self, index: int, place: int, outline: np.ndarray, share: float) -> None:
        truth = self.sample.truth(index)[place]
        if _off(outline, truth.box) > PIXELS:
            # Thin lines fade where things are small: drawn larger, the outline must end where the truth says.
            scene = self.sample.frames[index]
            large = replace(scene, width=LARGER * scene.width, height=LARGER * scene.height)
            off = _off(masks(large)[0][place], truth.box)
            if off > LARGER * PIXELS:
                self.faults.append(f"the box of {truth.name} in frame {index} is {off / LARGER:.1f} pixels off its outline")
        if abs(share - truth.visible) > 0.06:
            self.faults.append(f"{truth.name} in frame {index}: {share:.2f} is visible, the truth says {truth.visible:.2f}")

    def one(self, concept: int, frame: int = 0) -> Seen:
        """The only thing that the concept's name can mean in a frame, well visible. Raises `Unclear` otherwise."""
        words = {concepts()[concept].name}
        meant = [s for s in self.frames[frame] if s.names & words or s.record.concept == concept]
        if len(meant) != 1:
            raise Unclear(f"{concepts()[concept].name!r} can mean {len(meant)} things of frame {frame}")
        if meant[0].record.concept != concept:
            raise Unclear(f"{concepts()[concept].name!r} is there only by a synonym")
        if meant[0].visible < HALF - 0.03:
            raise Unclear(f"{meant[0].name} is only {meant[0].visible:.2f} visible")
        return meant[0]


class Unclear(Exception):
    """The question cannot be understood in one way."""


def _off(outline: np.ndarray, box: Box) -> float:
    """By how many pixels, at most, an edge of an outline is off the box that is stated for it."""
    height, width = outline.shape
    rows, columns = outline.any(1).nonzero()[0], outline.any(0).nonzero()[0]
    if not len(rows):
        return math.inf
    drawn = columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height
    return max(abs(a - b) * n for a, b, n in zip(drawn, box, (width, height) * 2, strict=True))


# Boxes as text, measured anew


def cells_of(text: str) -> tuple[int, int, int, int]:
    match = re.fullmatch(r"(\d\d) (\d\d) (\d\d) (\d\d)", text)
    if match is None:
        raise Unclear(f"{text!r} is no box")
    x0, y0, x1, y1 = map(int, match.groups())
    if x0 > x1 or y0 > y1:
        raise Unclear(f"{text!r} is no box")
    return x0, y0, x1, y1


def overlap(a: Sequence[int], b: Sequence[int]) -> float:
    """Of two ranges of cells, by counting cells."""
    both = max(0, min(a[2], b[2]) - max(a[0], b[0]) + 1) * max(0, min(a[3], b[3]) - max(a[1], b[1]) + 1)
    sizes = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
    return both / (sum(sizes) - both)


def touched(box: Box) -> tuple[int, int, int, int]:
    """The hundredths that a box reaches into, found by trying them all."""
    found = []
    for low, high in ((box[0], box[2]), (box[1], box[3])):
        inside = [i for i in range(100) if i / 100 < high - EPS and (i + 1) / 100 > low + EPS]
        found.append((inside[0], inside[-1]))
    return found[0][0], found[1][0], found[0][1], found[1][1]
