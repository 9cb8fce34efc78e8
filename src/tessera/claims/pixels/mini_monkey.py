"""Mini-Monkey's multi-scale adaptive crops: what one grid cuts apart is intact in the tiles of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Exact, Experiment, Vary, beats, worse
from tessera.lab.givens.pictures import CutThingsAreMissed
from tessera.lab.protocols.views import Views

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def lines_never_meet(lab: Lab) -> Checked:
    """All aspect ratios from 1:12 to 12:1 in steps of a twelfth, lines compared as fractions."""
    from fractions import Fraction

    from tessera.lab.exact import same
    from tessera.parts.pixels.mini_monkey import MiniMonkey

    part, met, lines_seen = MiniMonkey(MiniMonkey.Config(tile=112)), 0, 0
    shapes = [(w, h) for w in range(12, 145, 4) for h in range(12, 145, 4)]
    for width, height in shapes:
        detail, adaptive = part.grids(28 * width, 28 * height)
        for axis in (0, 1):
            lines = [{Fraction(k, grid[axis]) for k in range(1, grid[axis])} for grid in (detail, adaptive)]
            met += len(lines[0] & lines[1])
            lines_seen += len(lines[0]) + len(lines[1])
    return same({"no line in common": met == 0, "there are lines": lines_seen > 0}, shape=f"{len(shapes)} shapes of pictures")


def views_cover(lab: Lab) -> Checked:
    """Tiles of either layer, pasted back by their boxes, against the picture stretched to the grid."""
    from PIL import Image, ImageChops

    from tessera.lab.exact import same
    from tessera.parts.pixels.mini_monkey import MiniMonkey
    from tessera.world import World, WorldConfig

    part, equal = MiniMonkey(MiniMonkey.Config(tile=112)), {}
    picture = World(WorldConfig(split="test", width=336, height=224, kinds={"scene": 1.0}))[0].images()[0]
    views = part.views(picture)
    for layer, grid in zip(("detail", "adaptive"), part.grids(*picture.size), strict=True):
        size = (112 * grid[0], 112 * grid[1])
        whole = Image.new("RGB", size)
        for view in (v for v in views if v.layer == layer):
            whole.paste(view.image, (round(view.box[0] * size[0]), round(view.box[1] * size[1])))
        equal[f"the {layer} layer"] = ImageChops.difference(whole, picture.resize(size)).getbbox() is None
    return same(equal)


def views_of(name: str, *layers: str) -> Vary:
    """An arm that is read in these layers."""
    return Vary(name, uses=("mini_monkey",), layers=layers)


CLAIMS = [
    Exact(
        id="lines_never_meet",
        promise="The adaptive grid shares no cut line with the detail grid, whatever the image's shape.",
        paper="section 3.1",
        run=lines_never_meet,
    ),
    Exact(
        id="views_cover", promise="The views put together are the image, each at the place that its box says.", run=views_cover
    ),
    Experiment(
        id="recognises_what_is_cut",
        promise="Of the objects that the detail grid cuts, a higher share is recognised with the adaptive layer than without it.",
        paper="table 3, figure 4",
        protocol=Views(),
        metric="cut things",
        treatment=views_of("detail and adaptive", "detail", "adaptive"),
        baseline=views_of("detail", "detail"),
        control=views_of("detail and random crops", "detail", "random"),
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(beats("baseline", metric="other things"),),
        given=(CutThingsAreMissed(layers=("detail",)),),
        note="Without the thumbnail, in which the object expert recognises nearly everything of a picture of this size.",
    ),
    Experiment(
        id="recognises_beside_a_thumbnail",
        promise="Of the objects that the detail grid cuts, a higher share is recognised with all three layers than with detail "
        "grid and thumbnail.",
        paper="table 3",
        protocol=Views(),
        metric="cut things",
        treatment=views_of("three layers", "detail", "adaptive", "global"),
        baseline=views_of("detail and thumbnail", "detail", "global"),
        control=views_of("detail, thumbnail and random crops", "detail", "random", "global"),
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(beats("baseline", metric="other things"),),
        given=(CutThingsAreMissed(layers=("detail", "global")),),
    ),
]
