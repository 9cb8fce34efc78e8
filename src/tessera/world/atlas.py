"""The artwork: sprites of every concept in two styles, decoded sheet by sheet when first needed."""

from __future__ import annotations

import functools
import io
import zipfile
from importlib import resources

import numpy as np
from PIL import Image

from tessera.world.scene import STYLES

SPRITE = 64
_COLUMNS, _SHEET = 8, 24
_LEVELS = (64, 48, 36, 27, 20, 15)


@functools.cache
def _archive() -> zipfile.ZipFile:
    data = (resources.files("tessera.world") / "assets/atlas.zip").read_bytes()
    return zipfile.ZipFile(io.BytesIO(data))


@functools.cache
def _sheet(style: int, number: int) -> Image.Image:
    with Image.open(io.BytesIO(_archive().read(f"{STYLES[style]}/{number:02d}.webp"))) as image:
        return image.convert("RGBA")


@functools.lru_cache(maxsize=4096)
def sprite(concept: int, style: int) -> Image.Image:
    """The artwork as RGBA, 64 x 64, straight alpha."""
    row, column = divmod(concept % _SHEET, _COLUMNS)
    x, y = column * SPRITE, row * SPRITE
    return _sheet(style, concept // _SHEET).crop((x, y, x + SPRITE, y + SPRITE))


@functools.lru_cache(maxsize=16384)
def level(concept: int, style: int, tint: tuple[int, int, int] | None, pixels: int) -> Image.Image:
    """The artwork with premultiplied alpha (RGBa) at the pyramid level best for a cell of `pixels`, tinted if wanted."""
    side = min((s for s in _LEVELS if s >= pixels), default=SPRITE)
    image = sprite(concept, style)
    if tint is not None:
        image = recolour(image, tint)
    flat = image.convert("RGBa")
    return flat if side == SPRITE else flat.resize((side, side), Image.Resampling.BOX)


def recolour(image: Image.Image, rgb: tuple[int, int, int]) -> Image.Image:
    """The RGBA artwork in shades of one colour: dark parts a dark, light parts a light shade, shapes stay readable."""
    grey = image.convert("L")
    bands = []
    for c in rgb:
        table = [c * (40 + v) // 168 if v < 128 else c + (255 - c) * (v - 128) * 7 // (127 * 10) for v in range(256)]
        bands.append(grey.point(table))
    return Image.merge("RGBA", (*bands, image.getchannel("A")))


@functools.lru_cache(maxsize=4096)
def outline(concept: int, style: int) -> np.ndarray:
    """Points [P, 2] whose hull encloses the artwork's opaque part, in cell units: x, y in [-0.5, 0.5]."""
    opaque = np.asarray(sprite(concept, style).getchannel("A")) > 64
    rows = np.flatnonzero(opaque.any(1))
    left = opaque[rows].argmax(1)
    right = SPRITE - opaque[rows, ::-1].argmax(1)
    points = [(x, y) for r, a, b in zip(rows, left, right, strict=True) for x in (a, b) for y in (r, r + 1)]
    return np.asarray(points, np.float64) / SPRITE - 0.5


@functools.lru_cache(maxsize=65536)
def extent(concept: int, style: int, angle: int) -> tuple[float, float, float, float]:
    """The tight box of the artwork turned by `angle` degrees counter-clockwise, in cell units around the centre."""
    cos, sin = turn(angle)
    points = outline(concept, style)
    x = cos * points[:, 0] + sin * points[:, 1]
    y = -sin * points[:, 0] + cos * points[:, 1]
    return round(float(x.min()), 6), round(float(y.min()), 6), round(float(x.max()), 6), round(float(y.max()), 6)


@functools.cache
def turn(angle: int) -> tuple[float, float]:
    """Cosine and sine of whole degrees, rounded so that every machine's mathematics library agrees."""
    radians = np.deg2rad(angle)
    return round(float(np.cos(radians)), 9), round(float(np.sin(radians)), 9)
