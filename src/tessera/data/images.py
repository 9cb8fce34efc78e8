"""Safe decoding of untrusted bytes: an upright RGB image, or a `UserError` that says what is wrong.

Files are untrusted. The container is recognised by its content, never by its name; the size is read
from the header and refused before a pixel is decoded; what a small file could make a decoder do for minutes
(endless JPEG scans, millions of animation frames, compressed text chunks) is refused as well. Nothing global
in Pillow is changed, and no warning of a decoder reaches the caller.

Conversion, the same for every way in: EXIF orientation applied; transparency composited on white; CMYK
(Adobe's inverted JPEG included) to RGB without colour management; 16 bits scaled to 8; animations give their
first frame.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from tessera.data.image_headers import check_size, container, header_size, walk_gif, what_else
from tessera.data.image_sources import read_source, short
from tessera.errors import UserError

T = TypeVar("T")
Source: TypeAlias = str | Path | bytes | bytearray | memoryview | BinaryIO | Image.Image

MAX_PIXELS = 64_000_000
MAX_BYTES = 64_000_000
MAX_FRAMES = 10_000
# One clip may cost as much decoding as this many of the largest still images.
_CLIP_BUDGET = 32

_READABLE = "PNG, JPEG, WebP, GIF and BMP are"
_WHITE = (255, 255, 255)
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(source: Source, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """An upright RGB image from a path, a `data:` URL, bytes, a binary stream or a PIL image.

    PNG, JPEG, WebP, GIF and BMP are read. Raises `UserError` if it cannot be read, holds more than
    `max_pixels` (values past Pillow's own limit of about 179 million have no effect) or is longer than
    `max_bytes`.
    """
    if isinstance(source, Image.Image):
        check_size(source.size, "the image given", max_pixels)
        return to_rgb(source)
    name, data = read_source(source, max_bytes)
    image = _identify(data, name, max_pixels)
    return _guarded(name, image.format, lambda: _convert(image))


def frames(source: Source, n: int, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> list[Image.Image]:
    """At most `n` evenly spaced frames (first and last included when n >= 2) of an animated GIF, WebP or PNG.

    A still image gives one. All frames are upright RGB and of one size. Raises `UserError` as `open_image`
    does, and for a clip of more than `MAX_FRAMES` frames or too many pixels in all.
    """
    if n < 1:
        raise UserError(f"at least one frame must be asked for; got {n}.")
    if isinstance(source, Image.Image):
        return [open_image(source, max_pixels=max_pixels)]
    name, data = read_source(source, max_bytes)
    image = _identify(data, name, max_pixels)
    # Some cameras put several pictures into one JPEG; they are no clip.
    total = int(getattr(image, "n_frames", 1)) if image.format in ("PNG", "WEBP") else 1
    if image.format == "GIF":
        total = walk_gif(data, name, MAX_FRAMES + 1)
    width, height = image.size
    if total > MAX_FRAMES or total * width * height > _CLIP_BUDGET * max_pixels:
        raise UserError(
            f"{name}: {total:,} frames of {width} x {height} pixels are too many; shorten the clip or make "
            f"it smaller (at most {MAX_FRAMES:,} frames, {_CLIP_BUDGET * max_pixels:,} pixels in all)."
        )
    wanted = [0] if min(n, total) == 1 else _spread(min(n, total), total)

    def decode() -> list[Image.Image]:
        chosen: list[Image.Image] = []
        for index in wanted:
            with _no_warnings():
                image.seek(index)
            check_size(image.size, name, max_pixels)
            frame = _convert(image.copy())
            size = chosen[0].size if chosen else frame.size
            # A later GIF frame may stick out of the screen and enlarge it; browsers clip it, and so do we.
            chosen.append(frame if frame.size == size else frame.crop((0, 0, *size)))
        return chosen

    return _guarded(name, image.format, decode)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image as an upright RGB image: orientation applied, transparency on white, 16 bits scaled to 8.

    An upright RGB image in memory comes back as it is, any other as a new one without metadata; the one given
    is not changed. Mode "I" is taken as 16 bits (0..65535). Raises `UserError` for floating-point images,
    whose range is unknown, and for images that cannot be decoded.
    """
    return _guarded("the image given", image.format, lambda: _convert(image))


def _convert(image: Image.Image) -> Image.Image:
    image.load()
    turn = _UPRIGHT.get(_orientation(image.info.get("exif")))
    if image.mode == "RGB" and turn is None and not image.has_transparency_data:
        if not isinstance(image, ImageFile.ImageFile):
            return image
        result = image.copy()  # without the file's bytes, which the opened file holds on to
    else:
        result = _flatten(image)
    result = result if turn is None else result.transpose(turn)
    result.info = {}
    return result


def _flatten(image: Image.Image) -> Image.Image:
    """A new RGB image with the colours of `image`, transparency composited on white."""
    mode, clear = image.mode, image.info.get("transparency")
    if mode == "F":
        raise UserError("a floating-point image (mode F) has no known range; scale it to 8 bits first.")
    if mode == "I" or mode.startswith("I;16"):
        values = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        grey = ((values * 255 + 32767) // 65535).astype(np.uint8)
        if isinstance(clear, int):
            grey[values == clear] = 255
        return Image.fromarray(grey, "L").convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if isinstance(clear, tuple) and max(clear, default=0) > 255:
        # The colour key of a 16-bit PNG keeps its 16 bits while Pillow reduces the pixels to 8.
        image = image.copy()
        image.info["transparency"] = tuple(int(value) >> 8 for value in clear)
    # Pillow knows no direct way from premultiplied grey to RGBA.
    alpha = (image.convert("LA") if mode == "La" else image).convert("RGBA")
    flat = Image.new("RGB", image.size, _WHITE)
    flat.paste(alpha, mask=alpha.getchannel("A"))
    return flat


def _identify(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """The file opened but not decoded, its size checked twice: from our own reading of the header, then
    Pillow's."""
    kind = container(data)
    if kind is None:
        raise UserError(f"{name} {what_else(data)}. {_READABLE} read; convert it to one of them.")
    size = header_size(kind, data, name, max_pixels)
    if size is not None:
        check_size(size, name, max_pixels)

    def identify() -> Image.Image:
        with _no_warnings():
            return Image.open(io.BytesIO(data), formats=[kind])

    image = _guarded(name, kind, identify)
    check_size(image.size, name, max_pixels)
    return image


def _spread(n: int, total: int) -> list[int]:
    """`n` >= 2 indices spread evenly over 0 .. total - 1, both ends included."""
    return [(2 * i * (total - 1) + n - 1) // (2 * (n - 1)) for i in range(n)]


def _orientation(exif: Any) -> int:
    """The orientation tag (1..8) of a raw EXIF block; 1 if there is none or the block is damaged.

    Read here, for one tag, because a general EXIF parser follows every offset in an untrusted file.
    """
    if not isinstance(exif, bytes):
        return 1
    tiff = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(f"{order}I", tiff, 4)
        (count,) = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(count):
            tag, kind, length, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * entry)
            if tag == _ORIENTATION:
                return value if kind == 3 and length == 1 and value in _UPRIGHT else 1
    except struct.error:
        pass
    return 1


def _guarded(name: str, kind: str | None, work: Callable[[], T]) -> T:
    """Runs decoder code; whatever it raises on bad bytes becomes a `UserError`."""
    try:
        return work()
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"{name}: the image has too many pixels ({error}).") from error
    except Exception as error:  # decoders fail on damaged bytes with a dozen kinds of exceptions
        what = f"{name}: the {kind or 'image'} data is damaged, truncated or of an unknown kind"
        if isinstance(error, UnidentifiedImageError):
            raise UserError(f"{what}.") from error
        raise UserError(f"{what} ({short(str(error) or repr(error))}).") from error


_LOCKS: dict[int, threading.Lock] = {}


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    """Silences warnings of header parsers (corrupt EXIF and the like): the pixels decide whether an image is
    good.

    Warning filters are per process, so two threads must not swap them at once. The lock is looked up by
    process id: a forked child would otherwise inherit a lock that nobody in it can release.
    """
    with _LOCKS.setdefault(os.getpid(), threading.Lock()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
