"""Backgrounds: plain, gradient and textured, each with one colour that clearly dominates.

Everything is exact integer arithmetic (numpy floats hold whole numbers below 2**24 only), so pixels are the
same on every machine.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from PIL import Image

from tessera.errors import UserError, unknown
from tessera.world.rng import Rng
from tessera.world.scene import Background

RGB = tuple[int, int, int]
Texture = Literal["plain", "gradient", "stripes", "dots", "checks", "noise"]

COLOURS: dict[str, RGB] = {
    "white": (246, 246, 244),
    "black": (24, 24, 27),
    "red": (208, 40, 44),
    "green": (58, 150, 62),
    "blue": (44, 92, 208),
    "yellow": (246, 210, 48),
    "purple": (128, 58, 176),
    "orange": (241, 132, 30),
    "pink": (246, 160, 200),
    "gray": (142, 144, 148),
    "brown": (122, 76, 44),
    "teal": (12, 152, 160),
}
TINTS: tuple[str, ...] = ("red", "green", "blue", "yellow", "purple", "teal")
KINDS: tuple[Texture, ...] = ("plain", "gradient", "stripes", "dots", "checks", "noise")
DIRECTIONS = 4  # to the right, downwards, down to the right, up to the right

_COUNTS = (4, 6, 9)  # repeats of a texture along the shorter side
_CACHED_PIXELS = 256 * 256  # larger masks are made anew, so that the cache stays below 10 MB


def nearest_colour(rgb: RGB) -> str:
    """The name of the colour of `COLOURS` nearest to `rgb` (0..255) in squared RGB distance."""
    return min(COLOURS, key=lambda name: sum((a - b) ** 2 for a, b in zip(COLOURS[name], rgb, strict=True)))


def contrast_ink(fill: RGB) -> RGB:
    """Black or white, whichever reads better on `fill` (luma by BT.601 weights)."""
    luma = 299 * fill[0] + 587 * fill[1] + 114 * fill[2]
    return (16, 16, 18) if luma > 128_000 else (255, 255, 255)


@lru_cache(maxsize=2048)
def shade(colour: str, towards: int, percent: int) -> RGB:
    """`colour` moved `percent` of the way to the grey level `towards`, less if its name would change."""
    base = COLOURS[colour]
    for step in range(percent, 0, -2):
        moved = [(c * (100 - step) + towards * step) // 100 for c in base]
        if nearest_colour((moved[0], moved[1], moved[2])) == colour:
            return moved[0], moved[1], moved[2]
    return base


def sample_background(rng: Rng) -> Background:
    """A random background: 30 % plain, 30 % gradients, 40 % textures.

    The second colour is a shade of the first and bears its name; stripes and dots, which cover a quarter at
    most, may also have another colour.
    """
    kind = rng.weighted(KINDS, (6, 6, 2, 2, 2, 2))
    colour = rng.choice(tuple(COLOURS))
    towards = {"white": 0, "black": 255}.get(colour, rng.choice((0, 255)))
    second = shade(colour, towards, rng.integer(14, 40))
    if kind in ("stripes", "dots") and rng.chance(0.4):
        second = COLOURS[rng.choice([name for name in COLOURS if name != colour])]
    direction = rng.below(DIRECTIONS)
    return Background(kind=kind, colour=colour, second=second, direction=direction, seed=rng.below(1 << 16))


def draw_background(background: Background, width: int, height: int) -> Image.Image:
    """A new RGB image of `width` x `height` pixels.

    Raises:
        UserError: unknown colour or kind, or a size below one pixel.
    """
    if background.colour not in COLOURS:
        raise unknown("background colour", background.colour, COLOURS)
    if width < 1 or height < 1:
        raise UserError(f"an image must be at least 1 x 1 pixels, not {width} x {height}.")
    image = Image.new("RGB", (width, height), COLOURS[background.colour])
    kind = background.kind
    if kind == "plain":
        return image
    if kind == "noise":
        mask = value_noise(width, height, background.seed)
    elif kind in KINDS:
        count = _COUNTS[background.seed % len(_COUNTS)] if kind != "gradient" else 1
        make = _cached_mask if width * height <= _CACHED_PIXELS else _mask
        mask = make(kind, width, height, background.direction % DIRECTIONS, count)
    else:
        raise unknown("background kind", kind, KINDS)
    image.paste(background.second, (0, 0, width, height), mask)
    return image


def _mask(kind: str, width: int, height: int, direction: int, count: int) -> Image.Image:
    """Where the second colour stands: mode "L", 0 none, 255 all."""
    if kind == "gradient":
        y, x = np.ogrid[:height, :width]
        ramps = (x * 255 // max(1, width - 1), y * 255 // max(1, height - 1))
        level = (ramps[0], ramps[1], (ramps[0] + ramps[1]) // 2, (ramps[0] + 255 - ramps[1]) // 2)[direction]
        return Image.fromarray(np.broadcast_to(level, (height, width)).astype(np.uint8))
    # Textures are decided on a grid of points inside each pixel and averaged, which gives soft edges.
    fine = 4 if width * height <= _CACHED_PIXELS else 2
    mask = np.empty((height, width), dtype=np.uint8)
    rows = max(1, (1 << 18) // (width * fine * fine))  # in bands, so that a large image needs little memory
    for top in range(0, height, rows):
        bottom = min(height, top + rows)
        inside = _texture(kind, width, height, direction, count, fine, top, bottom)
        sums = inside.reshape(bottom - top, fine, width, fine).sum(axis=(1, 3), dtype=np.int32)
        mask[top:bottom] = sums * 255 // (fine * fine)
    return Image.fromarray(mask)


def _texture(kind: str, width: int, height: int, direction: int, count: int, fine: int, top: int, bottom: int) -> np.ndarray:
    """[(bottom - top) * fine, width * fine] bool: points of the second colour; 840 units are one period."""
    period = 840
    short = min(width, height) * fine
    v, u = np.ogrid[top * fine : bottom * fine, : width * fine]
    u, v = u * (period * count) // short, v * (period * count) // short
    if kind == "stripes":
        along = (u, v, (u + v) * 5 // 7, (u - v) * 5 // 7)[direction]
        inside = along % period < period // 4
    elif kind == "dots":
        du = (u + (v // period % 2) * (period // 2) * (direction % 2)) % period - period // 2
        dv = v % period - period // 2
        inside = du * du + dv * dv < (period * 27 // 100) ** 2
    else:
        inside = (u // period + v // period + direction) % 2 == 1
    return np.broadcast_to(inside, ((bottom - top) * fine, width * fine))


_cached_mask = lru_cache(maxsize=128)(_mask)


@lru_cache(maxsize=64)
def _weights(pixels: int, cells: int) -> np.ndarray:
    """[pixels, cells + 1] float32: smooth weights between grid points, whole, with sum 64 in each row."""
    weights = np.zeros((pixels, cells + 1), dtype=np.float32)
    for i in range(pixels):
        place = (2 * i + 1) * cells * 256 // (2 * pixels)  # in 256ths of a cell
        cell, t = place >> 8, place & 255
        smooth = (t * t * (768 - 2 * t)) >> 18  # 3t^2 - 2t^3 on 0..64
        weights[i, cell], weights[i, cell + 1] = 64 - smooth, smooth
    return weights


def value_noise(width: int, height: int, seed: int) -> Image.Image:
    """Soft value noise of 4 to 7 cells along each side, mode "L"; sums below 2**24 are exact in float32."""
    cells = 4 + seed % 4
    rng = Rng("noise", seed)
    grid = np.array([[rng.below(256) for _ in range(cells + 1)] for _ in range(cells + 1)], dtype=np.float32)
    level = _weights(height, cells) @ grid @ _weights(width, cells).T
    return Image.fromarray((level * np.float32(1 / 4096)).astype(np.uint8))
