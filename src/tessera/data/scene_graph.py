"""Scene graphs: what is in a picture, as data that programs can read, from the world's truth or from a vision expert.

Coordinates are in the picture's unit square, x to the right, y down, as in `tessera.world.scene`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.errors import UserError
from tessera.world.dataset import Sample
from tessera.world.questions import world_lexicon
from tessera.world.scene import Box

if TYPE_CHECKING:
    from PIL import Image

RELATIONS = ("left of", "right of", "above", "below")
GAP = 0.10
"""Between centres, along the axis: nearer ones are in no certain relation."""
Edge = tuple[int, str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One thing.

    attributes   kind of attribute -> value ("colour" -> "red"); a missing kind is not known, which is not the same as "not red"
    depth        larger is nearer, in one unit for all things of the picture; None: not known
    sure         whether it may be referred to by its label: well visible, and no other thing could be meant by the word
    """

    label: str
    box: Box
    attributes: Mapping[str, str] = field(default_factory=dict)
    depth: float | None = None
    sure: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SceneGraph:
    """All things of a picture; equal only to itself.

    edges      (index, relation, index) that hold
    doubtful   edges that may or may not hold; no question may rest on one
    masks      gives the visible pixels of every thing, bool [n, H, W]; None: not known
    ordered    pairs i < j whose order in depth can be seen; None: all, by `depth`
    complete   whether everything in the picture is in the graph, so that counts and absence are certain
    """

    nodes: tuple[Node, ...]
    edges: frozenset[Edge] = frozenset()
    doubtful: frozenset[Edge] = frozenset()
    masks: Callable[[], np.ndarray] | None = None
    ordered: frozenset[tuple[int, int]] | None = None
    complete: bool = True

    def labels(self) -> list[str]:
        """Of all nodes, in order."""
        return [node.label for node in self.nodes]

    def unique(self) -> list[int]:
        """Indices of the nodes that their label alone points at."""
        labels = self.labels()
        return [i for i, node in enumerate(self.nodes) if node.sure and labels.count(node.label) == 1]


@dataclass(frozen=True, slots=True)
class Annotated:
    """A picture with its graph. `name` tells it from all others; `split` is "train", "val", "test", or "" if it is of no world;
    `source`: the world's sample and the number of its frame, where it comes from there."""

    name: str
    graph: SceneGraph
    picture: Callable[[], Image.Image]
    split: str = ""
    source: tuple[Sample, int] | None = None


def relations_of(boxes: Sequence[Box], gap: float = GAP) -> tuple[frozenset[Edge], frozenset[Edge]]:
    """(edges, doubtful edges) between things, by the centres of their boxes."""
    centres = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes]
    edges, doubtful = set(), set()
    for i, a in enumerate(centres):
        for j, b in enumerate(centres):
            for axis, before, after in ((0, "left of", "right of"), (1, "above", "below")):
                if i == j:
                    continue
                distance = b[axis] - a[axis]
                if distance >= gap:
                    edges |= {(i, before, j), (j, after, i)}
                elif abs(distance) < gap:
                    doubtful |= {(i, before, j), (i, after, j)}
    return frozenset(edges), frozenset(doubtful)


def of_world(sample: Sample, frame: int = 0, *, evident: bool = True) -> Annotated:
    """The true graph of one frame of a world sample.

    Attributes are "colour" (of tinted things; artwork in its own colours is of no known one) and "style". evident: depth is
    told by overlap alone, so only pairs that overlap are `ordered`; without, all are, as in a picture with perspective.
    """
    truth = sample.truth(frame)
    clashes = world_lexicon().clashes
    present = {t.concept for t in truth}
    nodes = tuple(
        Node(
            label=t.name,
            box=t.box,
            attributes={**({"colour": t.tint} if t.tint else {}), "style": t.style},
            depth=t.depth / max(1, len(truth) - 1),
            sure=t.visible >= 0.5 and clashes.get(t.concept, frozenset()).isdisjoint(present),
        )
        for t in truth
    )
    edges, doubtful = relations_of([n.box for n in nodes])
    graph = SceneGraph(
        nodes=nodes,
        edges=edges,
        doubtful=doubtful,
        masks=lambda: sample.masks(frame)[1],
        ordered=_overlapping(sample, frame) if evident else None,
    )
    scene = sample.config
    name = f"{scene.split}-{scene.seed}-{sample.index}-{sample.kind}-{frame}"
    return Annotated(name, graph, lambda: sample.images()[frame], scene.split, (sample, frame))


def of_samples(samples: Iterable[Sample], *, evident: bool = True) -> list[Annotated]:
    """The true graphs of all frames of samples; frames without things are left out."""
    made = [of_world(s, f, evident=evident) for s in samples for f in range(len(s.frames))]
    return [m for m in made if m.graph.nodes]


def of_expert(model: Any, picture: Image.Image, *, least: int = 2, sureness: float = 0.5) -> SceneGraph:
    """The graph that a vision expert with a head per patch sees: things are connected patches of one class.

    A thing has at least `least` patches whose class has a mean probability of `sureness`; relations are those of the boxes. It
    knows neither attributes nor depth, and may miss things (`complete` is False). Raises `UserError` for a model without a head.
    """
    import torch

    from tessera.data.dense import BACKGROUND, TEXT, to_pixels

    if getattr(model, "head", None) is None or not hasattr(model, "grid"):
        raise UserError(f"{type(model).__name__} does not say what each patch shows; a vision expert such as object-expert does.")
    side = int(model.encoder.image_size)
    pixels = to_pixels([np.asarray(picture.convert("RGB").resize((side, side)))])
    with torch.no_grad():
        shares = model(pixels.to(next(model.parameters()).device)).logits[0].float().softmax(-1)
    rows, columns = model.grid
    best = shares.argmax(-1).reshape(rows, columns).cpu().numpy()
    chance = shares.amax(-1).reshape(rows, columns).cpu().numpy()
    names = {int(k): v for k, v in model.config.id2label.items()}
    nodes = []
    for patches in _regions(best):
        label = names[int(best[patches[0]])]
        if label in (BACKGROUND, TEXT) or len(patches) < least or np.mean([chance[p] for p in patches]) < sureness:
            continue
        ys, xs = [p[0] for p in patches], [p[1] for p in patches]
        box = (min(xs) / columns, min(ys) / rows, (max(xs) + 1) / columns, (max(ys) + 1) / rows)
        nodes.append(Node(label=label, box=box))
    edges, doubtful = relations_of([n.box for n in nodes])
    return SceneGraph(nodes=tuple(nodes), edges=edges, doubtful=doubtful, complete=False)


def _overlapping(sample: Sample, frame: int) -> frozenset[tuple[int, int]]:
    """Pairs of things of which one covers at least a twentieth of the other."""
    boxes = [t.box for t in sample.truth(frame)]
    near = [
        (i, j)
        for j, b in enumerate(boxes)
        for i, a in enumerate(boxes[:j])
        if min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
    ]
    if not near:
        return frozenset()
    full, _ = sample.masks(frame)
    return frozenset((i, j) for i, j in near if (full[i] & full[j]).sum() >= 0.05 * min(full[i].sum(), full[j].sum()))


def _regions(classes: np.ndarray) -> list[list[tuple[int, int]]]:
    """Patches [rows, columns] of equal class that touch along an edge, as lists of (row, column)."""
    seen = np.zeros(classes.shape, bool)
    found = []
    for start in np.ndindex(classes.shape):
        if seen[start]:
            continue
        seen[start] = True
        region, open_ = [], [(int(start[0]), int(start[1]))]
        while open_:
            row, column = open_.pop()
            region.append((row, column))
            for y, x in ((row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)):
                inside = 0 <= y < classes.shape[0] and 0 <= x < classes.shape[1]
                if inside and not seen[y, x] and classes[y, x] == classes[start]:
                    seen[y, x] = True
                    open_.append((y, x))
        found.append(region)
    return found
