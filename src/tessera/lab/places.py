"""Features of frozen vision towers with the world's labels of every place.

    seen = look(towers, [world[i] for i in range(200)])
    seen.features[0]      what tower 0 gives, [I, N, D]

Every place of an image has labels: the category and the tint of its thing, the thing's box as seen from there, the character
that stands there.

Legend: I images, N places in reading order, L layers of a tower, D its channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.data.dense import IGNORED, DenseData, character_labels, to_pixels
from tessera.world.backgrounds import TINTS
from tessera.world.concepts import by_category, concepts
from tessera.world.dataset import Sample
from tessera.world.render import Drawing

SHARE = 0.5
"""Least share of a place that its thing fills."""


def categories() -> list[str]:
    """Categories of the base concepts, in order; a thing's class here."""
    return sorted(by_category("base"))


def characters() -> int:
    """How many characters there are."""
    return len(character_labels()) - 1


@dataclass(slots=True, kw_only=True)
class Seen:
    """Places of images, as towers and the world see them; -100 where a label does not apply.

    samples     the images' world samples
    features    per tower [I, N, D] float32
    layers      per tower L x [I, N, D], shallow to deep, or empty
    category    [I, N] int64, index in `categories()`
    tint        [I, N] int64, index in `TINTS`, of tinted things only
    box         [I, N, 4] float32, from the place's centre to the left, top, right and bottom edge of its thing, in image sides
    character   [I, N] int64, index of the letter or digit
    """

    samples: list[Sample]
    features: list[Tensor]
    layers: list[tuple[Tensor, ...]]
    category: Tensor
    tint: Tensor
    box: Tensor
    character: Tensor


@torch.no_grad()
def look(towers: Sequence[Any], samples: Sequence[Sample], *, layers: bool = False, batch: int = 32) -> Seen:
    """What `towers` (encoders of equal image size and grid) give for samples of one image each.

    layers: whether those of every tower are kept too.
    """
    rows, _ = towers[0].grid
    drawings = [sample.drawings(owner=True)[0] for sample in samples]
    found: list[list[list[Tensor]]] = [[] for _ in towers]
    for start in range(0, len(samples), batch):
        pixels = to_pixels([np.asarray(drawing.image) for drawing in drawings[start : start + batch]])
        for tower, kept in zip(towers, found, strict=True):
            kept.append(tower.levels(pixels) if layers else [tower(pixels)])
    whole = [[torch.cat(level) for level in zip(*kept, strict=True)] for kept in found]
    truths = [_things(sample, drawing, rows) for sample, drawing in zip(samples, drawings, strict=True)]
    category, tint, box = (torch.from_numpy(np.stack(parts)) for parts in zip(*truths, strict=True))
    patch = towers[0].image_size // rows
    character = torch.from_numpy(np.stack([DenseData([], "characters", patch).characters(drawing) for drawing in drawings]))
    return Seen(
        samples=list(samples),
        features=[levels[-1] for levels in whole],
        layers=[tuple(levels) for levels in whole] if layers else [],
        category=category,
        tint=tint,
        box=box,
        character=torch.where(character > 0, character - 1, IGNORED),
    )


def _things(sample: Sample, drawing: Drawing, side: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Category, tint and box of the thing at every place of a grid of side x side."""
    truth = {t.key: t for t in sample.truth()}
    owner = np.asarray(drawing.owner)
    high, wide = owner.shape[0] // side, owner.shape[1] // side
    cells = owner[: high * side, : wide * side].reshape(side, high, side, wide).transpose(0, 2, 1, 3).reshape(side * side, -1)
    kinds = categories()
    category, tint = np.full(side * side, IGNORED, np.int64), np.full(side * side, IGNORED, np.int64)
    box = np.zeros((side * side, 4), np.float32)
    centre = (np.arange(side) + 0.5) / side
    x, y = np.tile(centre, side), np.repeat(centre, side)
    for index, thing in enumerate(sample.frames[0].things):
        mine = (cells == index).mean(1) >= SHARE
        known = truth[thing.key]
        name = concepts()[thing.concept].category
        category[mine] = kinds.index(name) if name in kinds else IGNORED
        tint[mine] = TINTS.index(known.tint) if known.tint is not None else IGNORED
        x0, y0, x1, y1 = known.box
        box[mine] = np.stack([x - x0, y - y0, x1 - x, y1 - y], -1)[mine]
    return category, tint, box


def overlap(found: Tensor, wanted: Tensor) -> Tensor:
    """Intersection over union of boxes seen from the same place, [..., 4] each -> [...]."""
    both = torch.minimum(found, wanted).clamp_min(0)
    inside = (both[..., 0] + both[..., 2]) * (both[..., 1] + both[..., 3])
    sizes = [(b[..., 0] + b[..., 2]) * (b[..., 1] + b[..., 3]) for b in (found, wanted)]
    return inside / (sizes[0] + sizes[1] - inside).clamp_min(1e-9)
