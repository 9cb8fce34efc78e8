"""The programs about depth: which thing, or which point, lies in front, and which points are of one thing."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tessera.data.scene_graph import SceneGraph
from tessera.parts.engines.provision.draft import Context, Draft, apart, either

# Things


def _nearer(graph: SceneGraph, i: int, j: int, gap: float) -> tuple[int, int] | None:
    """(nearer, farther) of two things whose order can be told, else None."""
    a, b = graph.nodes[i].depth, graph.nodes[j].depth
    if a is None or b is None or a == b:
        return None
    if graph.ordered is None:
        if abs(a - b) < gap or not apart(graph.nodes[i].box, graph.nodes[j].box):
            return None
    elif (min(i, j), max(i, j)) not in graph.ordered:
        return None
    return (i, j) if a > b else (j, i)


def depth(near: bool) -> Callable[[SceneGraph, Context], Iterator[Draft]]:
    """The program that asks which of two things is nearer, or farther."""

    def make(graph: SceneGraph, c: Context) -> Iterator[Draft]:
        for i, j in combinations(graph.unique(), 2):
            if (order := _nearer(graph, i, j, c.depth_gap)) is not None:
                names = [graph.nodes[k].label for k in order]
                answer, other = names if near else names[::-1]
                shown = c.rng.shuffled(names)
                query = (("op", "closer" if near else "farther"), ("labels", tuple(shown)))
                yield Draft({"candidates": either(shown)}, (answer,), (other,), query)

    return make


def anchored(near: bool) -> Callable[[SceneGraph, Context], Iterator[Draft]]:
    """Of two things the one whose depth is nearer to a third's; needs depths that can be compared by amount."""

    def make(graph: SceneGraph, c: Context) -> Iterator[Draft]:
        if graph.ordered is not None:
            return
        for chosen in combinations(graph.unique(), 3):
            depths = [graph.nodes[i].depth for i in chosen]
            if None in depths or not all(apart(graph.nodes[i].box, graph.nodes[j].box) for i, j in combinations(chosen, 2)):
                continue
            at = {i: float(d or 0.0) for i, d in zip(chosen, depths, strict=True)}
            low, middle, high = sorted(chosen, key=at.__getitem__)
            first, second = at[middle] - at[low], at[high] - at[middle]
            if abs(first - second) < c.depth_gap:
                continue
            together, alone = ((middle, high), low) if first > second else ((low, middle), high)
            anchor, close = c.rng.shuffled(together)
            right, wrong = (close, alone) if near else (alone, close)
            names = [graph.nodes[i].label for i in c.rng.shuffled([right, wrong])]
            label = graph.nodes[anchor].label
            query = (("op", "closer_to" if near else "farther_from"), ("anchor", label), ("labels", tuple(names)))
            words = {"candidates": either(names), "anchor": label}
            yield Draft(words, (graph.nodes[right].label,), (graph.nodes[wrong].label,), query)

    return make


# Points


@dataclass(frozen=True, slots=True)
class Places:
    """Which thing each pixel shows, [H, W] (-1: none), and where that is so all around, so that a rounded point stays on it."""

    owner: np.ndarray
    inner: np.ndarray

    def pick(self, c: Context, thing: int) -> tuple[float, float] | None:
        """A point well inside a thing (or the background), in the unit square."""
        rows, columns = np.nonzero(self.inner & (self.owner == thing))
        if not len(rows):
            return None
        at = c.rng.below(len(rows))
        return self.middle(int(rows[at]), int(columns[at]))

    def middle(self, row: int, column: int) -> tuple[float, float]:
        """The middle of a pixel."""
        height, width = self.owner.shape
        return (column + 0.5) / width, (row + 0.5) / height


@functools.lru_cache(maxsize=1)
def places(graph: SceneGraph) -> Places | None:
    """The owners of pixels, None if the graph has no masks or may lack things."""
    if graph.masks is None or not graph.complete:
        return None
    masks = graph.masks()
    owner: np.ndarray = np.full(masks.shape[1:], -1)
    for i, mask in enumerate(masks):
        owner[mask] = i
    reach = max(1, round(max(owner.shape) / 56))  # a written point may be a hundredth of the side away
    inner = np.zeros(owner.shape, bool)
    h, w = int(owner.shape[0]), int(owner.shape[1])
    core = owner[reach:-reach, reach:-reach]
    same = np.ones(core.shape, bool)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            same &= owner[reach + dy : h - reach + dy, reach + dx : w - reach + dx] == core
    inner[reach:-reach, reach:-reach] = same
    return Places(owner, inner)


def points(near: bool) -> Callable[[SceneGraph, Context], Iterator[Draft]]:
    """Which of two points is nearer: the points of two things, or of a thing and what is behind everything."""

    def make(graph: SceneGraph, c: Context) -> Iterator[Draft]:
        if any(n.depth is None for n in graph.nodes) or (found := places(graph)) is None:
            return
        choices = [(i, -1) for i in range(len(graph.nodes))]
        choices += [o for i, j in combinations(range(len(graph.nodes)), 2) if (o := _nearer(graph, i, j, c.depth_gap))]
        for first, second in c.rng.pick(choices, 4):
            a, b = found.pick(c, first), found.pick(c, second)
            if a is None or b is None:
                continue
            right, wrong = (c.point(*a), c.point(*b)) if near else (c.point(*b), c.point(*a))
            if right != wrong:
                shown = c.rng.shuffled([right, wrong])
                query = (("op", "closer_point" if near else "farther_point"), ("points", tuple(shown)))
                yield Draft({"candidates": either(shown)}, (right,), (wrong,), query)

    return make


def same(same: bool) -> Callable[[SceneGraph, Context], Iterator[Draft]]:
    """Which of two points, equally far from a third, is (not) on the same thing."""

    def make(graph: SceneGraph, c: Context) -> Iterator[Draft]:
        if (found := places(graph)) is None:
            return
        for i in range(len(graph.nodes)):
            points = _three(found, i, c)
            if points is None:
                continue
            anchor, inside, outside = (c.point(*p) for p in points)
            if len({anchor, inside, outside}) == 3:
                right, wrong = (inside, outside) if same else (outside, inside)
                shown = c.rng.shuffled([right, wrong])
                query = (("op", "same" if same else "different"), ("anchor", anchor), ("points", tuple(shown)))
                yield Draft({"candidates": either(shown), "anchor": anchor}, (right,), (wrong,), query)

    return make


def _three(found: Places, thing: int, c: Context) -> Sequence[tuple[float, float]] | None:
    rows, columns = np.nonzero(found.inner & (found.owner == thing))
    height, width = found.owner.shape
    for _ in range(10 if len(rows) > 1 else 0):
        a, b = c.rng.pick(range(len(rows)), 2)
        y, x = int(rows[a]), int(columns[a])
        distance = float(np.hypot(y - rows[b], x - columns[b]))
        for _ in range(10):
            angle = c.rng.uniform(0.0, 2 * np.pi)
            v, u = round(y + distance * float(np.sin(angle))), round(x + distance * float(np.cos(angle)))
            if 0 <= v < height and 0 <= u < width and found.inner[v, u] and found.owner[v, u] != thing:
                return found.middle(y, x), found.middle(int(rows[b]), int(columns[b])), found.middle(v, u)
    return None
