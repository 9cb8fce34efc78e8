"""Drawing a scene, with its ground truth per pixel.

Only Pillow's integer pipelines and affine transforms with rounded coefficients are used, so that a scene gives the same
bytes on every machine with the same Pillow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from tessera.world import atlas
from tessera.world.backgrounds import COLOURS, draw_background
from tessera.world.panels import draw_panel
from tessera.world.scene import Box, Scene, Thing
from tessera.world.text import draw_sign

SIGN, PANEL, NOTHING = 254, 253, 255


@dataclass(slots=True)
class Drawing:
    """A drawn scene.

    `image` RGB [H, W]; `owner` (if asked for) mode "L" [H, W]: the index in `Scene.things` of what is visible at each pixel,
    `SIGN`, `PANEL` or `NOTHING`; `characters` every drawn sign character with its box; `strings` every drawn string of the
    panel with its box and role.
    """

    image: Image.Image
    owner: Image.Image | None = None
    characters: list[tuple[str, Box]] = field(default_factory=list)
    strings: list[tuple[str, Box, str]] = field(default_factory=list)


def render(scene: Scene, *, owner: bool = False) -> Drawing:
    """Draws the scene at its own size; with `owner` also the map of what is visible where."""
    image = draw_background(scene.background, scene.width, scene.height)
    who = Image.new("L", image.size, NOTHING) if owner else None
    drawing = Drawing(image, who)
    if scene.panel is not None:
        drawing.strings.extend(draw_panel(image, scene.panel))
        if who is not None:
            who.paste(PANEL, _pixels(scene.panel.box, image.size))
    for index, thing in enumerate(scene.things):
        patch, corner = _draw_thing(thing, scene.width, scene.height)
        mask = patch.getchannel("A")
        image.paste(patch, corner, mask)
        if who is not None:
            box = (corner[0], corner[1], corner[0] + patch.width, corner[1] + patch.height)
            who.paste(index, box, mask.point(_BINARY))
    for sign in scene.signs:
        drawing.characters.extend(draw_sign(image, sign))
        if who is not None:
            who.paste(SIGN, _pixels(sign.box, image.size))
    return drawing


def masks(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Per thing, bool [n, H, W]: the full outline as if nothing covered it, and what of it is visible."""
    n, shape = len(scene.things), (scene.height, scene.width)
    full = np.zeros((n, *shape), bool)
    for index, thing in enumerate(scene.things):
        patch, (x, y) = _draw_thing(thing, scene.width, scene.height)
        layer = Image.new("L", (scene.width, scene.height), 0)
        layer.paste(patch.getchannel("A").point(_BINARY), (x, y))
        full[index] = np.asarray(layer) > 0
    owner = render(scene, owner=True).owner
    visible = np.asarray(owner)[None] == np.arange(n, dtype=np.uint8)[:, None, None]
    return full, visible


def thing_box(thing: Thing, width: int, height: int) -> Box:
    """The tight box of a thing's outline in the unit square, clipped to the image."""
    x0, y0, x1, y1 = atlas.extent(thing.concept, thing.style, thing.angle)
    side = thing.size * min(width, height)
    sx, sy = side / width, side / height
    return (
        max(0.0, thing.x + x0 * sx),
        max(0.0, thing.y + y0 * sy),
        min(1.0, thing.x + x1 * sx),
        min(1.0, thing.y + y1 * sy),
    )


def _draw_thing(thing: Thing, width: int, height: int) -> tuple[Image.Image, tuple[int, int]]:
    """The thing as straight RGBA on the smallest whole-pixel canvas that holds it, and where its corner goes."""
    side = thing.size * min(width, height)
    cos, sin = atlas.turn(thing.angle)
    reach = side * (abs(cos) + abs(sin)) / 2
    cx, cy = thing.x * width, thing.y * height
    left, top = math.floor(cx - reach), math.floor(cy - reach)
    columns, rows = math.ceil(cx + reach) - left, math.ceil(cy + reach) - top
    tint = COLOURS[thing.tint] if thing.tint else None
    art = atlas.level(thing.concept, thing.style, tint, math.ceil(side))
    scale = art.width / side
    ox, oy, half = cx - left, cy - top, art.width / 2
    # Pillow maps output to input: turn the offset from the centre back by the angle, then scale to the artwork.
    a, b = round(cos * scale, 7), round(-sin * scale, 7)
    d, e = round(sin * scale, 7), round(cos * scale, 7)
    matrix = (a, b, round(half - a * ox - b * oy, 5), d, e, round(half - d * ox - e * oy, 5))
    smooth = Image.Resampling.BICUBIC if scale < 0.9 else Image.Resampling.BILINEAR
    return art.transform((columns, rows), Image.Transform.AFFINE, matrix, smooth).convert("RGBA"), (left, top)


def _pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = box
    width, height = size
    return round(x0 * width), round(y0 * height), round(x1 * width), round(y1 * height)


_BINARY = [255 if v >= 96 else 0 for v in range(256)]
