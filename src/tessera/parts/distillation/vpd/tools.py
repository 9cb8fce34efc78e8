"""Tools that programs call: oracles of the world's ground truth that err as often as they are told to.

A tool errs in one call with probability `noise`, independently of all others: the detector misses a thing or takes another one
for it, a read-out says something else of the same kind. What is computed from boxes alone (beside, nearest, largest) is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from tessera.world.backgrounds import TINTS
from tessera.world.concepts import concepts
from tessera.world.dataset import Sample
from tessera.world.questions.facts import GAP
from tessera.world.questions.phrasing import POSITIONS, place
from tessera.world.rng import Rng


class Failed(Exception):
    """A program cannot go on: nothing was found, or a tool was given what it cannot use."""


@dataclass(frozen=True, slots=True)
class DetectedThing:
    """What the detector reports: `x, y` is the centre, `side` the square root of the box's area."""

    key: int
    name: str
    kind: str
    colour: str | None
    x: float
    y: float
    side: float

    @property
    def place(self) -> str:
        """The ninth of the picture that holds its centre."""
        return place(self.x, self.y)


Things: TypeAlias = "tuple[DetectedThing, ...]"
DIRECTIONS = ("left_of", "right_of", "above", "below")
EXTREMES = ("nearest", "farthest")
SIZES = ("largest", "smallest")
OUTPUTS = ("count", "exists", "name", "kind", "colour", "place")


class Tools:
    """All tools over one picture. `call(name, arguments)` raises `Failed` for whatever cannot be done."""

    def __init__(self, sample: Sample, noise: float, rng: Rng, aspect: tuple[float, float] = (1.0, 1.0)) -> None:
        self.noise, self.rng, self.aspect = noise, rng, aspect
        self.things: Things = tuple(
            DetectedThing(t.key, t.name, t.category, t.tint, *t.centre, t.area**0.5)
            for t in sorted(sample.truth(), key=lambda t: t.key)
        )
        self.names = tuple(concepts()[i].name for i in sample.pool)
        self.kinds = tuple(sorted({concepts()[i].category for i in sample.pool}))

    def call(self, name: str, arguments: Sequence[Any]) -> Any:
        """The result of a tool."""
        tool = TOOLS.get(name)
        if tool is None:
            raise Failed(f"there is no tool {name}")
        function, kinds = tool
        if len(arguments) != len(kinds) or not all(isinstance(a, k) for a, k in zip(arguments, kinds, strict=True)):
            raise Failed(f"{name} cannot be called like this")
        return function(self, *arguments)

    def _errs(self) -> bool:
        return self.rng.chance(self.noise)

    def _other(self, values: Sequence[str], value: str | None) -> str:
        return self.rng.choice([v for v in values if v != value])

    # Detectors

    def find(self, name: str) -> Things:
        """Things of a name."""
        found = tuple(t for t in self.things if t.name == name)
        return self._misjudged(found, name) if self._errs() else found

    def everything(self) -> Things:
        """All things."""
        if not self._errs() or not self.things:
            return self.things
        return self._without_one(self.things)

    def _misjudged(self, found: Things, name: str) -> Things:
        rest = tuple(t for t in self.things if t not in found)
        if rest and (not found or self.rng.chance(0.5)):
            return (*found, replace(self.rng.choice(rest), name=name))
        return self._without_one(found) if found else found

    def _without_one(self, things: Things) -> Things:
        lost = self.rng.below(len(things))
        return things[:lost] + things[lost + 1 :]

    # Geometry, exact

    def _beside(self, things: Things, reference: Things, axis: int, sign: int) -> Things:
        one = only(reference)
        at = (one.x, one.y)[axis]
        return tuple(t for t in things if t.key != one.key and sign * ((t.x, t.y)[axis] - at) >= GAP)

    def left_of(self, things: Things, reference: Things) -> Things:
        """Those left of the one reference."""
        return self._beside(things, reference, 0, -1)

    def right_of(self, things: Things, reference: Things) -> Things:
        """Those right of it."""
        return self._beside(things, reference, 0, 1)

    def above(self, things: Things, reference: Things) -> Things:
        """Those above it."""
        return self._beside(things, reference, 1, -1)

    def below(self, things: Things, reference: Things) -> Things:
        """Those below it."""
        return self._beside(things, reference, 1, 1)

    def _by_distance(self, things: Things, reference: Things) -> list[DetectedThing]:
        one, (sx, sy) = only(reference), self.aspect
        others = [t for t in things if t.key != one.key]
        return sorted(others, key=lambda t: ((t.x - one.x) * sx) ** 2 + ((t.y - one.y) * sy) ** 2)

    def nearest(self, things: Things, reference: Things) -> Things:
        """The one nearest to the one reference."""
        return tuple(self._by_distance(things, reference)[:1])

    def farthest(self, things: Things, reference: Things) -> Things:
        """The one farthest from it."""
        return tuple(self._by_distance(things, reference)[-1:])

    def largest(self, things: Things) -> Things:
        """The largest one."""
        return tuple(sorted(things, key=lambda t: t.side)[-1:])

    def smallest(self, things: Things) -> Things:
        """The smallest one."""
        return tuple(sorted(things, key=lambda t: t.side)[:1])

    def in_region(self, things: Things, region: str) -> Things:
        """Those whose centre is in a quarter of the picture."""
        rows = {"top": lambda t: t.y < 0.5, "bottom": lambda t: t.y >= 0.5}
        columns = {"left": lambda t: t.x < 0.5, "right": lambda t: t.x >= 0.5}
        words = region.split()
        if len(words) != 2 or words[0] not in rows or words[1] not in columns:
            raise Failed(f"{region} is no quarter of the picture")
        return tuple(t for t in things if rows[words[0]](t) and columns[words[1]](t))

    def of_kind(self, things: Things, kind: str) -> Things:
        """Those of a kind."""
        return tuple(t for t in things if t.kind == kind)

    def odd(self, things: Things) -> Things:
        """Those whose kind no other has."""
        kinds = [t.kind for t in things]
        return tuple(t for t in things if kinds.count(t.kind) == 1)

    def both(self, first: Things, second: Things) -> Things:
        """One group with another."""
        return first + second

    # Read-outs

    def count(self, things: Things) -> str:
        """How many."""
        return str(len(things))

    def exists(self, things: Things) -> str:
        """Whether there are any: yes or no."""
        return "yes" if things else "no"

    def more(self, first: Things, second: Things) -> str:
        """The name of the larger group."""
        if not first or not second or len(first) == len(second):
            raise Failed("neither group is larger")
        return (first if len(first) > len(second) else second)[0].name

    def name(self, things: Things) -> str:
        """The name of the one thing."""
        one = only(things)
        return self._other(self.names, one.name) if self._errs() else one.name

    def kind(self, things: Things) -> str:
        """Its kind."""
        one = only(things)
        return self._other(self.kinds, one.kind) if self._errs() else one.kind

    def colour(self, things: Things) -> str:
        """The colour it is tinted in."""
        one = only(things)
        if one.colour is None:
            raise Failed("it has no single colour")
        return self._other(tuple(TINTS), one.colour) if self._errs() else one.colour

    def place(self, things: Things) -> str:
        """The ninth of the picture it is in."""
        one = only(things)
        return self._other([p for row in POSITIONS for p in row], one.place) if self._errs() else one.place


def only(things: Things) -> DetectedThing:
    """The single thing of a group. Raises `Failed` for none or several."""
    if len(things) != 1:
        raise Failed(f"one thing is wanted, {len(things)} were found")
    return things[0]


Tool: TypeAlias = "tuple[Callable[..., Any], tuple[type, ...]]"
TOOLS: dict[str, Tool] = {
    "find": (Tools.find, (str,)),
    "everything": (Tools.everything, ()),
    **{name: (getattr(Tools, name), (tuple, tuple)) for name in (*DIRECTIONS, *EXTREMES, "both", "more")},
    **{name: (getattr(Tools, name), (tuple,)) for name in (*SIZES, "odd", *OUTPUTS)},
    **{name: (getattr(Tools, name), (tuple, str)) for name in ("in_region", "of_kind")},
}
"""Name -> function and the types of its arguments: all that a program may call."""
