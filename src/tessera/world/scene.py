"""What a scene is: plain records with complete ground truth.

Coordinates are in the image's unit square, x to the right, y down: a box is `(x0, y0, x1, y1)` with 0 <= x0 < x1 <= 1. Sizes of
things are fractions of the image's shorter side. Everything here is data; drawing is in `render`, random sampling in `sample`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Box = tuple[float, float, float, float]
Kind = Literal["scene", "text", "chart", "pair", "clip"]
KINDS: tuple[Kind, ...] = ("scene", "text", "chart", "pair", "clip")
STYLES = ("noto", "twemoji")


@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """One drawn object.

    `key` names it across the frames of a pair or clip. `concept` is an index of the atlas, `style` of `STYLES`. `x, y` is the
    centre, `size` the side of its square cell (fraction of the shorter image side), `angle` whole degrees counter-clockwise,
    `tint` one of `TINTS` or None for the artwork's own colours. Its depth rank is its position in `Scene.things`: later ones
    cover earlier ones.
    """

    key: int
    concept: int
    style: int
    x: float
    y: float
    size: float
    angle: int = 0
    tint: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sign:
    """A board with upper-case text: `box` in the unit square, `palette` an index of `SIGN_COLOURS`."""

    text: str
    box: Box
    palette: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """`colour` names the main colour (of `COLOURS`); `second` is an RGB for gradients and textures."""

    kind: Literal["plain", "gradient", "stripes", "dots", "checks", "noise"]
    colour: str
    second: tuple[int, int, int] = (0, 0, 0)
    direction: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """A chart or document drawn from data: `labels` (upper-case words) with whole-number `values`.

    kind: "bar", "line", "pie" (values are shares in percent), "table" (two columns), "receipt" (items with prices and a total).
    `box` is where it stands; `colours` one of `COLOURS` for each label (bars, slices).
    """

    kind: Literal["bar", "line", "pie", "table", "receipt"]
    labels: tuple[str, ...]
    values: tuple[int, ...]
    colours: tuple[str, ...]
    box: Box
    title: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """One image: things in depth order (first is farthest), signs above them, at most one panel."""

    width: int
    height: int
    background: Background
    things: tuple[Thing, ...] = ()
    signs: tuple[Sign, ...] = ()
    panel: Panel | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The single difference of a pair, or one event of a clip.

    kind: "added", "removed", "moved", "recoloured", "grown", "shrunk" (pairs); "appears", "vanishes", "moves", "swaps" (clips).
    `key` is the thing concerned (`other` the second of a swap); `frame` the first frame that shows the new state (1 for pairs);
    `direction` "left", "right", "up", "down" for moves.
    """

    kind: str
    key: int
    frame: int = 1
    other: int = -1
    direction: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Everything that is true of one drawn object in one frame; see `Sample.truth`."""

    key: int
    concept: int
    name: str
    synonyms: tuple[str, ...]
    category: str
    subcategory: str
    style: str
    box: Box  # tight around the drawn outline, clipped to the image
    centre: tuple[float, float]  # of the box
    area: float  # of the box, fraction of the image
    depth: int  # 0 is farthest
    visible: float  # fraction of its drawn area that nothing covers
    tint: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question with its only right answer.

    type: what ability it asks for (a key of `tessera.world.questions.TYPES`). form: how it is asked: "open", "yesno", "choice".
    `text` is what a model is asked, choices included ("... Choose: dog, cat, bus"); `answer` what it must say; `distractors` are
    wrong but plausible answers; `rationale` one sentence that leads to the answer; `evidence` the (frame, box) pairs it rests on;
    `query` the machine-readable meaning, from which a checker can answer without the generator.
    """

    type: str
    form: Literal["open", "yesno", "choice"]
    text: str
    answer: str
    choices: tuple[str, ...] = ()
    distractors: tuple[str, ...] = ()
    rationale: str = ""
    evidence: tuple[tuple[int, Box], ...] = ()
    query: tuple[tuple[str, object], ...] = ()

    def asked(self, key: str) -> object:
        """The value of `key` in the query."""
        return dict(self.query)[key]
