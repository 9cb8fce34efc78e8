"""Mini-Monkey's multi-scale adaptive crops (MSAC): three layers of views, so that no object is cut in all of them.

Source: Huang et al., "Mini-Monkey: Multi-Scale Adaptive Cropping for Multimodal Large Language Models", 2024,
arXiv:2408.02034. The detail layer cuts the picture by the grid whose aspect ratio is closest to its own; the adaptive layer
cuts it by a second grid whose cut lines fall elsewhere; the global layer is the whole picture in one view. The scale
compression that the paper adds for the detail layer's tokens is the part `scm` of socket `tokens`.

Deviations: the released code accepts an adaptive grid as soon as its columns *or* its rows do not divide the detail grid's,
so that a line in the other direction may coincide, and 6 columns pass beside 4 although both cut in the middle. Here both
directions must have no line in common: the columns of the two grids are coprime, and so are the rows (`cuts="released"` gives
the released rule). The adaptive layer may have 9 tiles instead of 7: the square grid that shares no line with 2 x 2 is 3 x 3.
Views come in the order detail, adaptive, global, as the compression needs it (later tokens look back at the detail layer).

Shapes: a picture of any size -> detail c r tiles, adaptive c' r' tiles, 1 thumbnail, all `tile` x `tile` pixels, each with
its box in the unit square.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import gcd
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from PIL import Image

from tessera.config import config
from tessera.errors import UserError
from tessera.hosts.pixels import View
from tessera.lab.claim import Finding, claim
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.lab.lab import Lab

Grid: TypeAlias = tuple[int, int]
"""(columns, rows)."""


@part("mini_monkey", socket="pixels", catalog=298)
class MiniMonkey:
    """Cuts a picture into the detail layer, the adaptive layer and the thumbnail."""

    @config
    class Config:
        """tile side of a view in pixels; least and most tiles of the detail grid and of the adaptive grid; cuts "apart" (no
        line in common) or "released" (the rule of the released code)."""

        tile: int = 448
        detail: tuple[int, int] = (4, 12)
        adaptive: tuple[int, int] = (3, 9)
        cuts: Literal["apart", "released"] = "apart"

        def validate_ranges(self) -> None:
            if self.tile < 1:
                raise ValueError(f"tile must be at least 1 pixel, not {self.tile}.")
            for name, (least, most) in (("detail", self.detail), ("adaptive", self.adaptive)):
                if not 1 <= least <= most:
                    raise ValueError(f"{name} is (least, most) tiles with 1 <= least <= most, not {(least, most)}.")

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def example(cls) -> dict[str, int]:
        """Options for a model that reads 112 pixels."""
        return {"tile": 112}

    def grids(self, width: int, height: int) -> tuple[Grid, Grid]:
        """(detail, adaptive) for a picture of so many pixels. Raises `UserError` when no adaptive grid lies apart."""
        tile = self.config.tile
        detail = closest(candidates(*self.config.detail), width, height, tile)
        apart = lines_apart if self.config.cuts == "apart" else released_rule
        allowed = [grid for grid in candidates(*self.config.adaptive) if apart(detail, grid)]
        if not allowed:
            least, most = self.config.adaptive
            raise UserError(
                f"pixels 'mini_monkey': no grid of {least} to {most} tiles has its cuts apart from {detail[0]} x {detail[1]}; "
                f"widen adaptive={self.config.adaptive}."
            )
        return detail, closest(allowed, width, height, tile)

    def views(self, image: Image.Image) -> list[View]:
        """Detail tiles, adaptive tiles (each in reading order), thumbnail."""
        picture = image.convert("RGB")
        detail, adaptive = self.grids(*picture.size)
        tile = self.config.tile
        whole = View(picture.resize((tile, tile)), layer="global")
        return [*cut(picture, detail, tile, "detail"), *cut(picture, adaptive, tile, "adaptive"), whole]


def candidates(least: int, most: int) -> list[Grid]:
    """All grids of `least` to `most` tiles, those with fewer tiles first, wider last."""
    grids = ((c, r) for c in range(1, most + 1) for r in range(1, most // c + 1) if c * r >= least)
    return sorted(grids, key=lambda grid: (grid[0] * grid[1], grid))


def closest(grids: Iterable[Grid], width: int, height: int, tile: int) -> Grid:
    """The grid with the aspect ratio closest to the picture's; of equal ones a later one if the picture has over half its
    pixels."""
    best, least = (1, 1), float("inf")
    for columns, rows in grids:
        difference = abs(width / height - columns / rows)
        if difference < least or (difference == least and width * height > 0.5 * tile * tile * columns * rows):
            best, least = (columns, rows), difference
    return best


def lines_apart(first: Grid, second: Grid) -> bool:
    """Whether no interior cut line of one grid coincides with one of the other: k/c = k'/c' needs a common divisor."""
    return gcd(first[0], second[0]) == 1 and gcd(first[1], second[1]) == 1


def released_rule(first: Grid, second: Grid) -> bool:
    """What the released code asks of the adaptive grid `second`."""
    return first[0] % second[0] != 0 or first[1] % second[1] != 0


def cut(picture: Image.Image, grid: Grid, tile: int, layer: str) -> list[View]:
    """The picture stretched to the grid and cut into its tiles, in reading order."""
    columns, rows = grid
    stretched = picture.resize((columns * tile, rows * tile))
    found = []
    for row in range(rows):
        for column in range(columns):
            pixels = (column * tile, row * tile, (column + 1) * tile, (row + 1) * tile)
            box = (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
            found.append(View(stretched.crop(pixels), box, layer))
    return found


# Claims


@claim(
    "the adaptive grid shares no cut line with the detail grid, whatever the picture's shape", kind="exact", paper="section 3.1"
)
def lines_never_meet(lab: Lab) -> Finding:
    """All aspect ratios from 1:12 to 12:1 in steps of a twelfth, lines compared as fractions."""
    from fractions import Fraction

    from tessera.lab.instruments.exact import same

    part_, met, ratios = (
        MiniMonkey(MiniMonkey.Config(tile=112)),
        0,
        {(w, h) for w in range(12, 145, 4) for h in range(12, 145, 4)},
    )
    for width, height in ratios:
        detail, adaptive = part_.grids(28 * width, 28 * height)
        for axis in (0, 1):
            lines = [{Fraction(k, grid[axis]) for k in range(1, grid[axis])} for grid in (detail, adaptive)]
            met += len(lines[0] & lines[1])
    return same({"no line in common": met == 0}, shape=f"{len(ratios)} shapes of pictures")


@claim("the views put together are the picture, each where its box says", kind="exact")
def views_cover(lab: Lab) -> Finding:
    """Tiles of either layer, pasted back, against the picture stretched to the grid."""
    from PIL import ImageChops

    from tessera.lab.instruments.exact import same

    picture, part_ = lab.world(width=336, height=224)[0].images()[0], MiniMonkey(MiniMonkey.Config(tile=112))
    views, equal = part_.views(picture), []
    for layer, grid in zip(("detail", "adaptive"), part_.grids(*picture.size), strict=True):
        size = (112 * grid[0], 112 * grid[1])
        whole = Image.new("RGB", size)
        for view in (v for v in views if v.layer == layer):
            whole.paste(view.image, (round(view.box[0] * size[0]), round(view.box[1] * size[1])))
        equal.append(ImageChops.difference(whole, picture.resize(size)).getbbox() is None)
    return same({"the detail layer": equal[0], "the adaptive layer": equal[1]})


@claim("things that the detail grid cuts are recognised in the adaptive layer", kind="effect", paper="table 3, figure 4")
def recognises_what_is_cut(lab: Lab) -> Finding:
    """Scenes of 336 x 336 pixels; the object expert reads every view, and the view in which it is surest of a thing names it.
    Baseline: detail grid and thumbnail; control: as many crops as the adaptive layer has, of its size, placed by lot."""
    import random

    from tessera.lab.lab import mean, spread

    expert, _ = lab.reference("object-expert")
    part_ = MiniMonkey(MiniMonkey.Config(tile=112))
    rates: dict[str, dict[str, list[float]]] = {kind: {"part": [], "grid": [], "lot": []} for kind in ("cut", "others")}
    for seed in lab.seeds:
        draw, counts = random.Random(seed), {kind: [0, 0, 0, 0] for kind in rates}
        world = lab.world(seed=seed, width=336, height=336, things=(4, 10), kinds={"scene": 1.0})
        for sample in (world[index] for index in range(40)):
            picture = sample.images()[0]
            views = part_.views(picture)
            plain = [view for view in views if view.layer != "adaptive"]
            lots = [_crop(picture, view, draw) for view in views if view.layer == "adaptive"]
            seen = _named(expert, [*views, *lots], [(truth.name, truth.box) for truth in sample.truth()])
            numbers = {id(view): number for number, view in enumerate([*views, *lots])}
            columns, rows = part_.grids(*picture.size)[0]
            for truth, by_view in zip(sample.truth(), seen, strict=True):
                cut_ = _is_cut(truth.box, columns, rows)
                tally = counts["cut" if cut_ else "others"]
                tally[3] += 1
                for place, chosen in enumerate((views, plain, [*plain, *lots])):
                    tally[place] += max((by_view[numbers[id(view)]] for view in chosen), key=lambda found: found[0])[1]
        for kind, tally in counts.items():
            for place, name in enumerate(("part", "grid", "lot")):
                rates[kind][name].append(tally[place] / max(1, tally[3]))
    gain = mean(rates["cut"]["part"]) - mean(rates["cut"]["grid"])
    return Finding(
        checks={
            "8 points more of those that are cut": gain >= 0.08,
            "at most one point less of the others": mean(rates["others"]["grid"]) - mean(rates["others"]["part"]) <= 0.01,
            "more of those that are cut than with crops by lot": mean(rates["cut"]["part"]) > mean(rates["cut"]["lot"]),
        },
        measured={"recognised, cut": mean(rates["cut"]["part"]), "recognised, others": mean(rates["others"]["part"])},
        baseline={"recognised, cut": mean(rates["cut"]["grid"]), "recognised, others": mean(rates["others"]["grid"])},
        control={"recognised, cut": mean(rates["cut"]["lot"]), "recognised, others": mean(rates["others"]["lot"])},
        spread={"recognised, cut": spread(rates["cut"]["part"]), "recognised, others": spread(rates["others"]["part"])},
        seeds=lab.seeds,
        shape="40 scenes of 4 to 10 things a seed, tiles of 112 pixels",
        note="the thumbnail shows every thing whole, so a grid alone misses only what is too small for it.",
    )


def _is_cut(box: tuple[float, float, float, float], columns: int, rows: int) -> bool:
    """Whether a line of the grid leaves at least a quarter of the box on either side."""
    for low, high, count in ((box[0], box[2], columns), (box[1], box[3], rows)):
        if any(0.25 <= (k / count - low) / (high - low) <= 0.75 for k in range(1, count)):
            return True
    return False


def _crop(picture: Image.Image, view: View, draw: Any) -> View:
    """As much of the picture as a view shows, from anywhere."""
    wide, high = view.box[2] - view.box[0], view.box[3] - view.box[1]
    x, y = draw.uniform(0, 1 - wide), draw.uniform(0, 1 - high)
    box = (x, y, x + wide, y + high)
    pixels = tuple(round(side * length) for side, length in zip(box, (*picture.size, *picture.size), strict=True))
    return View(picture.crop(pixels).resize(view.image.size), box, "lot")


def _named(expert: Any, views: list[View], things: list[tuple[str, Any]]) -> list[list[tuple[float, bool]]]:
    """Per thing and view: how sure the expert is of the name it gives the thing's patches, and whether that is right."""
    import numpy as np
    import torch

    from tessera.training.dense import object_labels, to_pixels

    labels = object_labels()
    with torch.no_grad():
        shares = expert(pixel_values=to_pixels([np.asarray(view.image) for view in views])).logits.softmax(-1)
    side = round(shares.shape[1] ** 0.5)
    middles = (torch.arange(side) + 0.5) / side
    found: list[list[tuple[float, bool]]] = []
    for name, box in things:
        row = []
        for number, view in enumerate(views):
            x0, y0, x1, y1 = view.box
            across = (middles * (x1 - x0) + x0 >= box[0]) & (middles * (x1 - x0) + x0 <= box[2])
            down = (middles * (y1 - y0) + y0 >= box[1]) & (middles * (y1 - y0) + y0 <= box[3])
            inside = (down[:, None] & across).flatten()
            if not bool(inside.any()):
                row.append((0.0, False))
                continue
            said = shares[number][inside][:, :-2].mean(0)
            row.append((float(said.max()), labels[int(said.argmax())] == name))
        found.append(row)
    return found


@claim("three layers cost less than twice the views of the detail grid and a thumbnail", kind="cost", paper="table 6")
def costs_views(lab: Lab) -> Finding:
    """Views over all shapes of pictures from 1:4 to 4:1."""
    part_ = MiniMonkey(MiniMonkey.Config(tile=112))
    shapes = [(w, h) for w in range(112, 1120, 56) for h in range(112, 1120, 56) if 1 / 4 <= w / h <= 4]
    found = [part_.grids(*shape) for shape in shapes]
    plain = sum(d[0] * d[1] + 1 for d, _ in found) / len(found)
    views = sum(d[0] * d[1] + a[0] * a[1] + 1 for d, a in found) / len(found)
    return Finding(
        checks={"less than twice as many views": views < 2 * plain},
        measured={"views": views},
        baseline={"views": plain},
        shape=f"{len(shapes)} shapes of pictures",
    )
