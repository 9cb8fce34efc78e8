"""Twelve ways to damage an image in five strengths, the usual ones of robustness benchmarks.

After Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
Perturbations" (2019, arXiv:1903.12261), with own strengths and integer arithmetic: the same image, name,
strength and seed give the same pixels. Extents in pixels grow with the image, so that a strength means the
same at any size.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from tessera.errors import UserError, unknown
from tessera.world.backgrounds import value_noise
from tessera.world.rng import Rng

STRENGTHS = (1, 2, 3, 4, 5)
_REFERENCE = 112  # extents in pixels are given for images whose shorter side is this long


def corrupt(image: Image.Image, name: str, strength: int, seed: int = 0) -> Image.Image:
    """A damaged copy of `image`, RGB and of the same size.

    Args:
        image: of any mode; read as RGB.
        name: one of `CORRUPTIONS`.
        strength: 1 (slight) to 5 (severe).
        seed: picks the noise, the direction, the place.

    Raises:
        UserError: unknown name, or a strength that is not a whole number from 1 to 5.
    """
    if name not in _METHODS:
        raise unknown("corruption", name, CORRUPTIONS)
    if isinstance(strength, bool) or strength not in STRENGTHS:
        raise UserError(f"the strength of a corruption is 1, 2, 3, 4 or 5, not {strength!r}.")
    return _METHODS[name](image.convert("RGB"), int(strength) - 1, Rng("corruption", name, seed))


def _pixels(image: Image.Image, at_reference: float) -> float:
    """A length given for the reference size, in this image's pixels."""
    return at_reference * min(image.size) / _REFERENCE


def _bell(image: Image.Image, rng: Rng) -> np.ndarray:
    """[height, width, 3] int32: nearly normal noise, mean 0, standard deviation 209 (sums of 8 bytes)."""
    shape = (image.height, image.width, 3, 8)
    raw = np.random.PCG64(rng.below(1 << 48)).random_raw(math.prod(shape) // 8)
    return raw.astype("<u8").view(np.uint8).reshape(shape).sum(axis=3, dtype=np.int32) - 1020


def _add(values: np.ndarray, scaled: np.ndarray, divisor: int) -> Image.Image:
    """Add `scaled / divisor`, rounded to the nearest, and clip to 0..255."""
    return Image.fromarray(np.clip(values + (2 * scaled + divisor) // (2 * divisor), 0, 255).astype(np.uint8))


def _gaussian_noise(image: Image.Image, level: int, rng: Rng) -> Image.Image:
    deviation = (8, 16, 26, 40, 60)[level]
    return _add(np.asarray(image, dtype=np.int32), _bell(image, rng) * deviation, 209)


def _shot_noise(image: Image.Image, level: int, rng: Rng) -> Image.Image:
    """Noise whose variance grows with the brightness, as of few photons."""
    deviation = (10, 20, 32, 48, 70)[level]  # at white
    values = np.asarray(image, dtype=np.int32)
    roots = np.array([math.isqrt(255 * value) for value in range(256)], dtype=np.int32)
    return _add(values, _bell(image, rng) * deviation * roots[values] // 255, 209)


def _blur(image: Image.Image, level: int, rng: Rng) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(_pixels(image, (0.6, 1.0, 1.6, 2.4, 3.6)[level])))


def _motion_blur(image: Image.Image, level: int, rng: Rng) -> Image.Image:
    reach = _pixels(image, (1.0, 2.0, 3.0, 4.5, 7.0)[level])
    return image.filter(ImageFilter.BoxBlur((reach, 0) if rng.chance(0.5) else (0, reach)))


def _jpeg(image: Image.Image, level: int, rng: Rng) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=(50, 30, 18, 11, 6)[level], subsampling=2)
    with Image.open(file) as opened:
        return opened.convert("RGB")


def _shrunk(image: Image.Image, factor: float, resample: Image.Resampling) -> Image.Image:
    size = (max(1, int(image.width / factor + 0.5)), max(1, int(image.height / factor + 0.5)))
    return image.resize(size, Image.Resampling.BOX).resize(image.size, resample)


def _pixelate(image: Image.Image, level: int, rng: Rng) -> Image.Image:
    return _shrunk(image, max(1.0, _pixels(image, (2.0, 3.0, 4.5, 6.5, 9.0)[level])), Image.Resampling.NEAREST)


def _downscale(image: Image.Image, level: int, rng: Rng) -> Image.Image:
    return _shrunk(image, max(1.0, _pixels(image, (1.5, 2.2, 3.2, 4.5, 6.5)[level])), Image.Resampling.BICUBIC)


def _contrast(image: Image.Image, level: int, rng: Rng) -> Image.Image:
    """Towards the image's mean grey."""
    percent = (70, 52, 38, 25, 14)[level]
    grey = image.convert("L")
    mean = sum(value * n for value, n in enumerate(grey.histogram())) // (image.width * image.height)
    return image.point([(mean * (100 - percent) + value * percent + 50) // 100 for value in range(256)] * 3)


def _brightness(image: Image.Image, level: int, rng: Rng) -> Image.Image:
    """Brighter or darker, whichever the seed says."""
    step = (24, 46, 70, 96, 126)[level] * (1 if rng.chance(0.5) else -1)
    return image.point([min(255, max(0, value + step)) for value in range(256)] * 3)


def _fog(image: Image.Image, level: int, rng: Rng) -> Image.Image:
    percent = (30, 45, 58, 70, 82)[level]
    thickness = value_noise(image.width, image.height, rng.below(1 << 16))
    mask = thickness.point([(128 + value // 2) * percent // 100 for value in range(256)])
    fogged = image.copy()
    fogged.paste((226, 228, 232), (0, 0, *image.size), mask)
    return fogged


def _occlusion(image: Image.Image, level: int, rng: Rng) -> Image.Image:
    """One grey patch; a stronger one covers the weaker of the same seed."""
    percent = (16, 24, 33, 43, 55)[level]  # of either side
    wide, tall = -(-image.width * percent // 100), -(-image.height * percent // 100)
    x, y = int(rng.uniform() * (image.width - wide)), int(rng.uniform() * (image.height - tall))
    covered = image.copy()
    covered.paste((127, 127, 127), (x, y, x + wide, y + tall))
    return covered


def _rotate_hue(image: Image.Image, level: int, rng: Rng) -> Image.Image:
    turn = (10, 20, 33, 50, 75)[level] * (1 if rng.chance(0.5) else -1)  # in 256ths of the circle
    hue, saturation, value = image.convert("HSV").split()
    shifted = ImageChops.add_modulo(hue, Image.new("L", image.size, turn % 256))
    return Image.merge("HSV", (shifted, saturation, value)).convert("RGB")


_METHODS: dict[str, Callable[[Image.Image, int, Rng], Image.Image]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "blur": _blur,
    "motion_blur": _motion_blur,
    "jpeg": _jpeg,
    "pixelate": _pixelate,
    "contrast": _contrast,
    "brightness": _brightness,
    "fog": _fog,
    "occlusion": _occlusion,
    "rotate_hue": _rotate_hue,
    "downscale": _downscale,
}
CORRUPTIONS: tuple[str, ...] = tuple(_METHODS)
