"""What the question makers share: per-frame facts, worked out once for each sample, and the margins that keep
answers unique.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from tessera.world.questions.lexicon import Lexicon
from tessera.world.questions.phrasing import place
from tessera.world.rng import Rng
from tessera.world.scene import Change, Scene, Truth

GAP = 0.10  # between centres, along the axis of a relation
RATIO = 1.20  # between the two lengths of a comparison
MID_MARGIN = 0.04  # of every centre from the mid lines, for quadrants
THIRD_MARGIN = 0.03  # of a centre from the thirds, for positions
VISIBLE = 0.5  # things less visible are never asked about
AXES = (("left", "right"), ("above", "below"))


class SampleLike(Protocol):
    """The part of `tessera.world.sample.Sample` that questions and captions need."""

    @property
    def kind(self) -> str: ...
    @property
    def frames(self) -> tuple[Scene, ...]: ...
    @property
    def changes(self) -> tuple[Change, ...]: ...
    @property
    def pool(self) -> tuple[int, ...]: ...
    @property
    def index(self) -> int: ...
    def truth(self, frame: int) -> Sequence[Truth]: ...


class FrameThing:
    """One thing of a frame. `x, y` is the centre of its box, `side` the square root of the box's area
    (fractions of the image).

    `unique`: no other thing of the frame bears its name. `askable`: it is unique and at least half visible.
    """

    __slots__ = (
        "askable",
        "box",
        "category",
        "concept",
        "key",
        "name",
        "side",
        "style",
        "tint",
        "truth",
        "unique",
        "visible",
        "x",
        "y",
    )

    def __init__(self, truth: Truth) -> None:
        self.concept = truth.concept
        self.truth = truth
        self.key = truth.key
        self.name = truth.name
        self.category = truth.category
        self.style = truth.style
        self.tint = truth.tint
        self.box = truth.box
        self.x, self.y = truth.centre
        self.side = math.sqrt(truth.area)
        self.visible = truth.visible >= VISIBLE
        self.unique = False
        self.askable = False

    @property
    def place(self) -> str:
        """The ninth of the picture that holds its centre, without a margin: for rationales."""
        return place(self.x, self.y)


class Frame:
    """The facts of one frame.

    `counts`: how often each concept is there; `categories`: how many things of each category; `clear`:
    everything is at least half visible; `only_things`: there are neither signs nor a panel; `askable`: the things
    that may be referred to by name.
    """

    __slots__ = (
        "_by_side",
        "_ranks",
        "askable",
        "aspect",
        "categories",
        "clear",
        "counts",
        "index",
        "items",
        "only_things",
        "scene",
    )

    def __init__(self, index: int, scene: Scene, truths: Sequence[Truth], lexicon: Lexicon) -> None:
        self.index = index
        self.scene = scene
        items = [FrameThing(truth) for truth in truths]
        counts: dict[int, int] = {}
        categories: dict[str, int] = {}
        clear = True
        for item in items:
            counts[item.concept] = counts.get(item.concept, 0) + 1
            categories[item.category] = categories.get(item.category, 0) + 1
            clear = clear and item.visible
        clashes = lexicon.clashes
        askable = []
        for item in items:
            if counts[item.concept] == 1:
                clash = clashes.get(item.concept)
                if clash is None or clash.isdisjoint(counts):
                    item.unique = True
                    if item.visible:
                        item.askable = True
                        askable.append(item)
        self.items = items
        self.counts = counts
        self.categories = categories
        self.clear = clear
        self.askable = askable
        self.only_things = not scene.signs and scene.panel is None
        shorter = min(scene.width, scene.height)
        self.aspect = (scene.width / shorter, scene.height / shorter)
        self._ranks: list[list[FrameThing]] | None = None
        self._by_side: list[FrameThing] | None = None

    def ranks(self, axis: int) -> list[FrameThing]:
        """All things from left to right (axis 0) or from top to bottom (axis 1)."""
        if self._ranks is None:
            self._ranks = [sorted(self.items, key=lambda i: i.x), sorted(self.items, key=lambda i: i.y)]
        return self._ranks[axis]

    def by_side(self) -> list[FrameThing]:
        """All things, the smallest first."""
        if self._by_side is None:
            self._by_side = sorted(self.items, key=lambda i: i.side)
        return self._by_side

    def references(self) -> list[tuple[FrameThing, str, list[FrameThing]]]:
        """Things by which others can be placed: (thing, direction, the things that lie there).

        A thing serves for an axis if no other thing's centre is within `GAP` of its own along it, on either
        side.
        """
        found: list[tuple[FrameThing, str, list[FrameThing]]] = []
        for axis, (before, after) in enumerate(AXES):
            line = self.ranks(axis)
            at = [item.x for item in line] if axis == 0 else [item.y for item in line]
            last = len(line) - 1
            for i, item in enumerate(line):
                if item.askable and (i == 0 or at[i] - at[i - 1] >= GAP) and (i == last or at[i + 1] - at[i] >= GAP):
                    found.append((item, before, line[:i]))
                    found.append((item, after, line[i + 1 :]))
        return found

    def extreme(self, reference: FrameThing, *, nearest: bool) -> FrameThing | None:
        """The thing nearest to (or farthest from) another one, or None without two candidates or the margin
        of `RATIO`.

        Distances are between centres of boxes in pixels. In pictures that are not square the same thing must
        also win in the unit square.
        """
        others = [i for i in self.items if i is not reference]
        if len(others) < 2:
            return None
        winner: FrameThing | None = None
        scales = (self.aspect,) if self.aspect == (1.0, 1.0) else (self.aspect, (1.0, 1.0))
        for sx, sy in scales:
            spans = [((i.x - reference.x) * sx) ** 2 + ((i.y - reference.y) * sy) ** 2 for i in others]
            best = min(spans) if nearest else max(spans)
            at = spans.index(best)
            spans[at] = math.inf if nearest else -math.inf
            second = min(spans) if nearest else max(spans)
            near, far = (best, second) if nearest else (second, best)
            if far < near * RATIO**2 or far == 0 or (winner is not None and winner is not others[at]):
                return None
            winner = others[at]
        return winner

    def quadrants(self) -> dict[str, FrameThing]:
        """The things that are alone in their quadrant and half visible; empty if any centre is near a mid
        line.
        """
        alone: dict[str, FrameThing | None] = {}
        for item in self.items:
            if abs(item.x - 0.5) < MID_MARGIN or abs(item.y - 0.5) < MID_MARGIN:
                return {}
            region = f"{'top' if item.y < 0.5 else 'bottom'} {'left' if item.x < 0.5 else 'right'}"
            alone[region] = None if region in alone else item
        return {region: item for region, item in alone.items() if item is not None and item.visible}


class Facts:
    """One sample, ready to be asked about. `single` is its only frame, or None for pairs and clips."""

    __slots__ = ("frames", "lexicon", "pool", "sample", "single")

    def __init__(self, sample: SampleLike, lexicon: Lexicon) -> None:
        self.sample = sample
        self.lexicon = lexicon
        self.pool = lexicon.pool(sample.pool)
        self.frames = [Frame(i, scene, sample.truth(i), lexicon) for i, scene in enumerate(sample.frames)]
        self.single = self.frames[0] if len(self.frames) == 1 and sample.kind not in ("pair", "clip") else None

    def absent(self, rng: Rng, groups: Sequence[tuple[int, ...]], barred: dict[int, object], tries: int = 6) -> int | None:
        """A concept of the first group that is not among `barred` and shares no name with it; then of the
        next group.
        """
        clashes = self.lexicon.clashes
        for group in groups:
            for _ in range(tries if group else 0):
                concept = rng.choice(group)
                if concept not in barred:
                    clash = clashes.get(concept)
                    if clash is None or clash.isdisjoint(barred):
                        return concept
        return None

    def wrong_names(
        self, frame: Frame, rng: Rng, right: FrameThing, *barred: FrameThing
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Wrong names for a question whose answer is a thing: (all of them, those that a choice may offer).

        First come other things of the picture except the `barred`, then absent concepts of the right one's
        category. A choice offers only the former or, where they are fewer than two, only the latter: in a
        mixture the odd category would betray which of them are in the picture.
        """
        shut = {item.concept for item in barred}
        shut.add(right.concept)
        present: list[str] = []
        for item in frame.items:
            if item.concept not in shut:
                shut.add(item.concept)
                if item.name != right.name:
                    present.append(item.name)
        present = rng.pick(present, 3)
        if len(present) == 3:
            return tuple(present), tuple(present)
        seen: dict[int, object] = dict.fromkeys(frame.counts)
        seen[right.concept] = None
        kin: list[str] = []
        wanted = 3 - len(present) if len(present) == 2 else 3
        for _ in range(wanted):
            concept = self.absent(rng, (self.pool.by_category.get(right.category, ()),), seen)
            if concept is None:
                break
            seen[concept] = None
            kin.append(self.lexicon.concepts[concept].name)
        everything = present + kin[: 3 - len(present)]
        while len(everything) < 3:
            concept = self.absent(rng, (self.pool.ids,), seen)
            if concept is None:
                break
            seen[concept] = None
            everything.append(self.lexicon.concepts[concept].name)
        return tuple(everything), tuple(present if len(present) >= 2 else kin if len(kin) >= 2 else ())
