"""Where things stand: rejection sampling of sizes and places under a limit on overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tessera.world.render import thing_box
from tessera.world.rng import Rng
from tessera.world.scene import Box, Sign, Thing

COVERED = 0.22  # of a thing's box, at most, by all that overlaps it: more than half of the artwork stays visible
APART = 0.02


@dataclass(frozen=True, slots=True)
class Room:
    """What scenes are drawn from: concept pool and families (category -> concepts), styles, image size in pixels.

    `combinations` of colour and concept: "seen", "held-out" or "all". `crowded` is the share of things that may overlap others.
    """

    pool: tuple[int, ...]
    families: dict[str, tuple[int, ...]]
    styles: tuple[int, ...]
    width: int
    height: int
    combinations: str = "seen"
    crowded: float = 0.3

    def free(self, thing: Thing, others: Sequence[Thing]) -> bool:
        """Whether the thing's box meets no other thing's box."""
        box = thing_box(thing, self.width, self.height)
        return all(_shared(box, thing_box(o, self.width, self.height)) == 0 for o in others)


def place(
    rng: Rng, room: Room, unplaced: Sequence[Thing], boards: Sequence[Sign], standing: list[Thing], size: float | None = None
) -> tuple[Thing, ...]:
    """The things with places and sizes; those for which no place is found are left out.

    `standing` things are in the way already; `size` fixes the size.
    """
    n = len(unplaced) + len(standing)
    largest = 0.46 if n <= 2 else 0.40 if n <= 3 else 0.33 if n <= 5 else 0.27 if n <= 8 else 0.22
    smallest = 0.17 if n <= 8 else 0.15
    boxes = [thing_box(t, room.width, room.height) for t in standing]
    covered = [0.0] * len(boxes)
    walls = [s.box for s in boards]
    found: list[Thing] = []
    for one in unplaced:
        may_overlap = rng.chance(room.crowded)
        for attempt in range(16):
            side = size or rng.uniform(smallest, largest if attempt < 6 else smallest + (largest - smallest) * 0.3)
            mx, my = (side * min(room.width, room.height) / 2 / d for d in (room.width, room.height))
            thing = replace(one, size=side, x=rng.uniform(mx, 1 - mx), y=rng.uniform(my, 1 - my))
            box = thing_box(thing, room.width, room.height)
            if any(_near(box, wall) for wall in walls):
                continue
            if not may_overlap:
                if any(_near(box, b) for b in boxes):
                    continue
                shares: list[tuple[int, float, float]] = []
            else:
                area = _area(box)
                shares = [(i, s / _area(b), s / area) for i, b in enumerate(boxes) if (s := _shared(box, b)) > 0]
                if sum(s for _, _, s in shares) > COVERED or any(covered[i] + s > COVERED for i, s, _ in shares):
                    continue
            for i, share, _ in shares:
                covered[i] += share
            boxes.append(box)
            covered.append(sum(s for _, _, s in shares))
            found.append(thing)
            break
    return tuple(found)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _shared(a: Box, b: Box) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    return w * h if w > 0 and h > 0 else 0.0


def _near(a: Box, b: Box) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > -APART and min(a[3], b[3]) - max(a[1], b[1]) > -APART
