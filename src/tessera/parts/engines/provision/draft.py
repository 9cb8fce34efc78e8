"""What a question program gives, and what its text is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tessera.data.scene_graph import SceneGraph
from tessera.world.questions import box_text
from tessera.world.rng import Rng
from tessera.world.scene import Box

Query = tuple[tuple[str, object], ...]


@dataclass(frozen=True, slots=True)
class Draft:
    """One thing that can be asked.

    words    what the template's braces stand for
    answers  everything that is right: all of it is the short answer, one of it an option
    wrong    options that are wrong beyond doubt
    query    the meaning in plain values, "op" first, from which a checker answers without the program
    """

    words: Mapping[str, str]
    answers: tuple[str, ...]
    wrong: tuple[str, ...]
    query: Query


@dataclass(frozen=True, slots=True)
class Context:
    """How drafts are made: the random stream, most options, least difference in depth, and how places are written."""

    rng: Rng
    options: int
    depth_gap: float
    decimal: bool

    def box(self, box: Box) -> str:
        """A box as text."""
        return f"({', '.join(f'{v:.2f}' for v in box)})" if self.decimal else box_text(box)

    def point(self, x: float, y: float) -> str:
        """A point as text, in whole hundredths."""
        column, row = min(99, int(x * 100)), min(99, int(y * 100))
        return f"({column / 100:.2f}, {row / 100:.2f})" if self.decimal else f"{column:02d} {row:02d}"


@dataclass(frozen=True, slots=True)
class Program:
    """A question program: its name, what it makes of a picture, and the phrasings of its questions (the last is held out)."""

    name: str
    make: Callable[[SceneGraph, Context], Iterable[Draft]]
    phrases: tuple[str, ...]


def either(words: Sequence[str]) -> str:
    """ "dog, cat or bus"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def counts_near(count: int) -> tuple[str, ...]:
    """Wrong counts: those next to the right one, none below one."""
    near = (2, 3, 4) if count == 1 else (count - 1, count + 1, count + 2)
    return tuple(map(str, near))


def kind_values(graphs: Iterable[SceneGraph]) -> dict[str, tuple[str, ...]]:
    """Every kind of attribute with the values that occur, sorted."""
    found: dict[str, set[str]] = {}
    for graph in graphs:
        for node in graph.nodes:
            for kind, value in node.attributes.items():
                found.setdefault(kind, set()).add(value)
    return {kind: tuple(sorted(values)) for kind, values in sorted(found.items())}


def apart(a: Box, b: Box, axes: Sequence[int] = ()) -> bool:
    """Whether two boxes do not meet; `axes` 0 or 1: whether their shadows on that axis do not."""
    clear = [a[axis + 2] <= b[axis] or b[axis + 2] <= a[axis] for axis in (axes or (0, 1))]
    return any(clear)


def certain(graph: SceneGraph, i: int, j: int) -> tuple[str, ...] | None:
    """All relations of thing i to thing j, sorted; None if one of them is in doubt, or there is none."""
    return _certain(graph).get((i, j))


@functools.lru_cache(maxsize=256)
def _certain(graph: SceneGraph) -> dict[tuple[int, int], tuple[str, ...]]:
    doubted = {(a, b) for a, _, b in graph.doubtful}
    found: dict[tuple[int, int], list[str]] = {}
    for a, name, b in sorted(graph.edges):
        if (a, b) not in doubted:
            found.setdefault((a, b), []).append(name)
    return {ends: tuple(names) for ends, names in found.items()}


def pairs(indices: Sequence[int]) -> Iterator[tuple[int, int]]:
    """All ordered pairs of different ones."""
    return ((i, j) for i in indices for j in indices if i != j)
