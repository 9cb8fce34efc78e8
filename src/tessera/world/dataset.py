"""The world as a dataset: `World(WorldConfig(...))[index]` is a `Sample` with images, truth, questions and captions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tessera.config import config
from tessera.errors import UserError, unknown
from tessera.world import concepts as table
from tessera.world import sample as sampling
from tessera.world.arrange import Room
from tessera.world.render import Drawing, masks, render, thing_box
from tessera.world.rng import Rng
from tessera.world.scene import KINDS, STYLES, Box, Change, Question, Scene, Truth

if TYPE_CHECKING:
    from PIL import Image

VERSION = 1
SPLITS = ("train", "val", "test")
COMBINATIONS = ("seen", "held-out", "all")


@config
class WorldConfig:
    """Which part of the world, and at which size.

    split: "train", "val", "test" (different scenes); seed: another world of the same kind; width, height: pixels, 64 to 2048;
    pool: concepts "base", "novel", "everyday" or "all"; styles: of "noto", "twemoji"; combinations: colour x concept pairs
    "seen", "held-out" or "all"; kinds: weights of "scene", "text", "chart", "pair", "clip"; frames: fewest and most frames of
    a clip, 2 to 16;
    things: fewest and most things of a scene, 1 to 12; corruption: "" or a name of `tessera.world.corruptions` with strength 1
    to 5.
    """

    split: str = "train"
    seed: int = 0
    width: int = 112
    height: int = 112
    pool: str = "base"
    styles: tuple[str, ...] = STYLES
    combinations: str = "seen"
    kinds: dict[str, float] = field(
        default_factory=lambda: {"scene": 0.64, "text": 0.12, "chart": 0.10, "pair": 0.07, "clip": 0.07}
    )
    frames: tuple[int, int] = (3, 4)
    things: tuple[int, int] = (1, 12)
    corruption: str = ""
    strength: int = 3

    def check(self) -> None:
        """Raises `UserError` for a value outside its range."""
        for what, value, valid in (
            ("split", self.split, SPLITS),
            ("concept pool", self.pool, table.POOLS),
            ("combinations", self.combinations, COMBINATIONS),
            *(("style", s, STYLES) for s in self.styles),
            *(("kind of sample", k, KINDS) for k in self.kinds),
        ):
            if value not in valid:
                raise unknown(what, value, valid)
        for name, number in (("width", self.width), ("height", self.height)):
            if not 64 <= number <= 2048:
                raise UserError(f"the world's {name} must be 64 to 2048 pixels; got {number}.")
        if not 2 <= self.frames[0] <= self.frames[1] <= 16:
            raise UserError(f"clips have 2 to 16 frames, fewest first; got {self.frames}.")
        if not 1 <= self.things[0] <= self.things[1] <= 12:
            raise UserError(f"scenes have 1 to 12 things, fewest first; got {self.things}.")
        if not self.styles or not self.kinds or sum(self.kinds.values()) <= 0 or min(self.kinds.values()) < 0:
            raise UserError("the world needs at least one style and one kind of sample with a weight above zero.")
        if self.corruption:
            from tessera.world.corruptions import CORRUPTIONS

            if self.corruption not in CORRUPTIONS:
                raise unknown("corruption", self.corruption, CORRUPTIONS)


class Sample:
    """One item of the world: one or more frames with complete ground truth."""

    __slots__ = ("_truth", "_visit", "changes", "config", "frames", "index", "kind", "pool")

    def __init__(
        self,
        config: WorldConfig,
        index: int,
        kind: str,
        frames: tuple[Scene, ...],
        changes: tuple[Change, ...],
        pool: tuple[int, ...],
    ) -> None:
        self.config, self.index, self.kind, self.frames, self.changes, self.pool = config, index, kind, frames, changes, pool
        self._truth: dict[int, tuple[Truth, ...]] = {}
        self._visit: tuple[int, ...] = ()

    def rng(self, purpose: str) -> Rng:
        """A stream of its own for every purpose, so that one more question never changes another."""
        return Rng("world", VERSION, self.config.split, self.config.seed, self.index, purpose, *self._visit)

    def visit(self, number: int) -> Sample:
        """The same images and truth with other questions, captions and lists drawn about them; visit 0 is the sample as it is."""
        again = Sample(self.config, self.index, self.kind, self.frames, self.changes, self.pool)
        again._truth = self._truth  # shared, so that it is computed once
        again._visit = (number,) if number else ()
        return again

    def truth(self, frame: int = 0) -> tuple[Truth, ...]:
        """What is true of every thing of a frame, in depth order (farthest first)."""
        if frame not in self._truth:
            self._truth[frame] = _truth(self.frames[frame])
        return self._truth[frame]

    def drawings(self, size: tuple[int, int] | None = None, *, owner: bool = False) -> list[Drawing]:
        """Every frame drawn at `size` (width, height; the config's own by default), corrupted if the config says so."""
        drawn = []
        for number, scene in enumerate(self.frames):
            drawing = render(replace(scene, width=size[0], height=size[1]) if size else scene, owner=owner)
            if self.config.corruption:
                from tessera.world.corruptions import corrupt

                seed = Rng("corruption", self.config.seed, self.index, number).below(2**31)
                drawing.image = corrupt(drawing.image, self.config.corruption, self.config.strength, seed)
            drawn.append(drawing)
        return drawn

    def images(self, size: tuple[int, int] | None = None) -> list[Image.Image]:
        """Every frame as an RGB image."""
        return [d.image for d in self.drawings(size)]

    def masks(self, frame: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Per thing of a frame, bool [n, H, W]: its full outline, and what of it is visible."""
        return masks(self.frames[frame])

    def relations(self, frame: int = 0) -> list[tuple[int, str, int]]:
        """(index, "left of" | "above", index) for all pairs of things whose centres differ by a tenth of the axis or more."""
        truth = self.truth(frame)
        return [
            (i, word, j)
            for i, a in enumerate(truth)
            for j, b in enumerate(truth)
            for axis, word in ((0, "left of"), (1, "above"))
            if b.centre[axis] - a.centre[axis] >= 0.1
        ]

    def questions(self, types: tuple[str, ...] | None = None) -> list[Question]:
        """All questions that have one answer here; see `tessera.world.questions`."""
        from tessera.world.questions import generate

        return generate(self, self.rng("questions"), types)

    def captions(self) -> dict[str, str]:
        """ "short", "dense" and "child" descriptions."""
        from tessera.world.captions import captions

        return captions(self)


class World:
    """All samples of a configuration: `world[i]` for any i >= 0, `iter(world)` without end."""

    def __init__(self, config: WorldConfig | None = None, **options: Any) -> None:
        """`World(split="test", width=224)` or `World(WorldConfig(...))`. Raises `UserError` for a bad value."""
        from tessera.config import build

        self.config = config if config is not None else build(WorldConfig, options, "world")
        self.config.check()
        c = self.config
        self._room = Room(
            pool=table.pool(c.pool),
            families=table.by_category(c.pool),
            styles=tuple(STYLES.index(s) for s in c.styles),
            width=c.width,
            height=c.height,
            combinations=c.combinations,
        )
        self._kinds = sorted(c.kinds)

    def __getitem__(self, index: int) -> Sample:
        return self.sample(index)

    def __iter__(self) -> Iterator[Sample]:
        index = 0
        while True:
            yield self.sample(index)
            index += 1

    def sample(self, index: int, kind: str | None = None, frames: int | None = None) -> Sample:
        """The sample at `index`; `kind` and the `frames` of a clip fix what is otherwise drawn by the config."""
        if index < 0:
            raise UserError(f"samples are numbered from 0; got {index}.")
        c, room = self.config, self._room
        rng = Rng("world", VERSION, c.split, c.seed, index, "scene")
        kind = kind or rng.weighted(self._kinds, [c.kinds[k] for k in self._kinds])
        changes: tuple[Change, ...] = ()
        if kind == "scene":
            scenes: tuple[Scene, ...] = (sampling.sample_scene(rng, room, *c.things),)
        elif kind == "text":
            scenes = (sampling.sample_text(rng, room),)
        elif kind == "chart":
            scenes = (sampling.sample_chart(rng, room),)
        elif kind == "pair":
            scenes, changes = sampling.sample_pair(rng, room)
        elif kind == "clip":
            scenes, changes = sampling.sample_clip(rng, room, frames or rng.integer(*c.frames))
        else:
            raise unknown("kind of sample", kind, KINDS)
        return Sample(c, index, kind, scenes, changes, room.pool)


def _truth(scene: Scene) -> tuple[Truth, ...]:
    boxes = [thing_box(t, scene.width, scene.height) for t in scene.things]
    shares = [1.0] * len(boxes)
    if any(_meet(a, b) for i, a in enumerate(boxes) for b in boxes[:i]):
        scale = 128 / min(scene.width, scene.height)
        small = replace(scene, width=round(scene.width * scale), height=round(scene.height * scale), panel=None)
        full, visible = masks(small)
        shares = [float(v.sum() / max(1, f.sum())) for f, v in zip(full, visible, strict=True)]
    found = []
    for depth, (thing, box, share) in enumerate(zip(scene.things, boxes, shares, strict=True)):
        concept = table.concepts()[thing.concept]
        found.append(
            Truth(
                key=thing.key,
                concept=thing.concept,
                name=concept.name,
                synonyms=concept.synonyms,
                category=concept.category,
                subcategory=concept.subcategory,
                style=STYLES[thing.style],
                box=box,
                centre=((box[0] + box[2]) / 2, (box[1] + box[3]) / 2),
                area=(box[2] - box[0]) * (box[3] - box[1]),
                depth=depth,
                visible=share,
                tint=thing.tint,
            )
        )
    return tuple(found)


def _meet(a: Box, b: Box) -> bool:
    return min(a[2], b[2]) > max(a[0], b[0]) and min(a[3], b[3]) > max(a[1], b[1])
