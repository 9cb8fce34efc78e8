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

import base64
import binascii
import contextlib
import io
import os
import re
import struct
import threading
import urllib.parse
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, TypeVar

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from tessera.errors import TesseraError, UserError

T = TypeVar("T")
Source: TypeAlias = str | Path | bytes | bytearray | memoryview | BinaryIO | Image.Image

MAX_PIXELS = 64_000_000
MAX_BYTES = 64_000_000
MAX_FRAMES = 10_000
# One clip may cost as much decoding as this many of the largest still images.
_CLIP_BUDGET = 32
# More scans than any encoder writes; each scan of a progressive JPEG costs a pass over all pixels.
_JPEG_SCANS = 24
_JPEG_SEGMENTS = 8192
_PNG_CHUNKS = 100_000
_GIF_BLOCKS = 1_000_000
_JUNK = 65_536

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
_FOREIGN = (
    (re.compile(rb"(II\*\0|MM\0\*|II\+\0|MM\0\+)"), "a TIFF image"),
    (re.compile(rb".{4}ftyp(avif|avis)", re.DOTALL), "an AVIF image"),
    (re.compile(rb".{4}ftyp(heic|heix|hevc|mif1|msf1)", re.DOTALL), "a HEIC image"),
    (re.compile(rb".{4}ftyp", re.DOTALL), "an MP4 video"),
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer (git lfs pull fetches the file itself)"),
    (re.compile(rb"%PDF"), "a PDF document"),
    (re.compile(rb"(PK\x03\x04|\x1f\x8b)"), "a compressed archive"),
    (re.compile(rb"\s*<(!doctype html|html)", re.IGNORECASE), "a web page"),
    (re.compile(rb"\s*<(\?xml|svg)", re.IGNORECASE), "an SVG or XML document"),
)


def open_image(source: Source, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """An upright RGB image from a path, a `data:` URL, bytes, a binary stream or a PIL image.

    PNG, JPEG, WebP, GIF and BMP are read. Raises `UserError` if it cannot be read, holds more than
    `max_pixels` (values past Pillow's own limit of about 179 million have no effect) or is longer than
    `max_bytes`.
    """
    if isinstance(source, Image.Image):
        _check_size(source.size, "the image given", max_pixels)
        return to_rgb(source)
    name, data = _read(source, max_bytes)
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
    name, data = _read(source, max_bytes)
    image = _identify(data, name, max_pixels)
    # Some cameras put several pictures into one JPEG; they are no clip.
    total = int(getattr(image, "n_frames", 1)) if image.format in ("PNG", "WEBP") else 1
    if image.format == "GIF":
        total = _walk_gif(data, name, MAX_FRAMES + 1)
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
            _check_size(image.size, name, max_pixels)
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


def _read(source: Any, max_bytes: int) -> tuple[str, bytes]:
    """What to call the source in a sentence, and its bytes."""
    if isinstance(source, (str, Path)):
        text = str(source)
        if text[:5].lower() == "data:":
            name, data = "the data: URL", _data_url(text, max_bytes)
        elif re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", text) and isinstance(source, str):
            raise UserError(f"{_short(text)} is an address, and nothing is downloaded: save the image and give its path.")
        else:
            name, data = _short(text), _read_file(text, max_bytes)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name, data = "the image given as bytes", bytes(source)
    elif hasattr(source, "read"):
        name, data = "the image stream", _read_stream(source, max_bytes)
    else:
        raise UserError(
            f"an image must be a path, a data: URL, bytes, a binary stream or a PIL image; got {type(source).__name__}."
        )
    if not data:
        raise UserError(f"{name}: the file is empty (0 bytes); an image was expected.")
    if len(data) > max_bytes:
        raise UserError(f"{name}: the file is longer than the limit of {max_bytes:,} bytes.")
    return name, data


def _read_file(path: str, max_bytes: int) -> bytes:
    name = _short(path)
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > max_bytes:
                raise UserError(f"{name}: the file has {size:,} bytes; the limit is {max_bytes:,}.")
            return stream.read(max_bytes + 1)
    except FileNotFoundError:
        raise UserError(f"{name}: there is no such file.") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a folder; an image file was expected.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{name}: the file cannot be read ({reason}).") from error


def _read_stream(stream: BinaryIO, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    left = max_bytes + 1
    try:
        while left > 0 and (part := stream.read(min(left, 1 << 20))):
            if not isinstance(part, bytes):
                raise UserError("the image stream gives text; open it in binary mode ('rb').")
            parts.append(part)
            left -= len(part)
    except (OSError, ValueError) as error:
        if isinstance(error, TesseraError):
            raise
        raise UserError(f"the image stream cannot be read ({error}).") from error
    return b"".join(parts)


def _data_url(url: str, max_bytes: int) -> bytes:
    """The payload of `data:[<type>][;base64],<data>` (RFC 2397)."""
    head, comma, body = url.partition(",")
    if not comma:
        raise UserError("the data: URL has no comma; it should look like data:image/png;base64,iVBORw0...")
    if len(body) > 3 * max_bytes + 4:
        raise UserError(f"the data: URL is longer than the limit of {max_bytes:,} bytes allows.")
    try:
        data = urllib.parse.unquote_to_bytes(body)
        if head.lower().endswith(";base64"):
            data = b"".join(data.split())
            return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
        return data
    except (binascii.Error, ValueError) as error:
        raise UserError(f"the data: URL is not valid base64 ({error}).") from error


def _identify(data: bytes, name: str, max_pixels: int) -> Image.Image:
    """The file opened but not decoded, its size checked twice: from our own reading of the header, then
    Pillow's."""
    kind = _kind(data)
    if kind is None:
        raise UserError(f"{name} {_what(data)}. {_READABLE} read; convert it to one of them.")
    size = _header_size(kind, data, name, max_pixels)
    if size is not None:
        _check_size(size, name, max_pixels)

    def identify() -> Image.Image:
        with _no_warnings():
            return Image.open(io.BytesIO(data), formats=[kind])

    image = _guarded(name, kind, identify)
    _check_size(image.size, name, max_pixels)
    return image


def _kind(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    if data.startswith(b"BM") and data[15:18] == b"\0\0\0" and data[14] in (12, 40, 52, 56, 64, 108, 124):
        return "BMP"
    return None


def _what(data: bytes) -> str:
    for pattern, what in _FOREIGN:
        if pattern.match(data[:64]):
            return f"is {what}"
    return f"is not an image (its first bytes are {data[:8]!r})"


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise UserError(f"{name}: the image has no pixels ({width} x {height}).")
    if width * height > max_pixels:
        raise UserError(
            f"{name}: the image has {width:,} x {height:,} pixels, {width * height / 1e6:,.1f} million; the "
            f"limit is {max_pixels / 1e6:,.1f} million. Make it smaller first."
        )


def _header_size(kind: str, data: bytes, name: str, max_pixels: int) -> tuple[int, int] | None:
    """Width and height as the header states them; None if the header is too short or odd to tell."""
    try:
        if kind == "JPEG":
            return _walk_jpeg(data, name, max_pixels)
        if kind == "PNG":
            return _walk_png(data, name)
        if kind == "WEBP" and data[12:16] == b"VP8X":
            width, height = struct.unpack("<II", data[24:27] + b"\0" + data[27:30] + b"\0")
            return width + 1, height + 1
        if kind == "WEBP" and data[12:16] == b"VP8L":
            (bits,) = struct.unpack("<I", data[21:25])
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if kind == "WEBP" and data[12:16] == b"VP8 ":
            width, height = struct.unpack("<HH", data[26:30])
            return width & 0x3FFF, height & 0x3FFF
        if kind == "BMP":
            if data[14] >= 40 and data[30] in (1, 2):
                raise UserError(f"{name}: run-length encoded BMP files are not read; save it as a PNG.")
            width, height = struct.unpack(*(("<HH", data[18:22]) if data[14] == 12 else ("<ii", data[18:26])))
            return width, abs(height)
        if kind == "GIF":  # frames may be larger than the screen: Pillow's reading is the one that counts
            _walk_gif(data, name, 1)
    except (struct.error, IndexError):
        pass
    return None


_MARKER = re.compile(rb"\xff([\x01-\xcf\xd8-\xfe])")


def _walk_jpeg(data: bytes, name: str, max_pixels: int) -> tuple[int, int] | None:
    """The frame's size; refuses files that would keep the parser or the decoder busy for minutes."""
    size: tuple[int, int] | None = None
    at, segments, scans, junk = 2, 0, 0, 0
    while (found := _MARKER.search(data, at)) is not None:
        marker = found.group(1)[0]
        junk += 0 if scans else found.start() - at
        at, segments = found.end(), segments + 1
        if marker == 0xD9:  # end of image; what follows belongs to cameras
            break
        if marker in (0x01, 0xD8):  # markers that stand alone
            continue
        if marker == 0xDA:
            scans += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and scans == 0:
            height, width = struct.unpack(">HH", data[at + 3 : at + 7])
            size = width, height
        (length,) = struct.unpack(">H", data[at : at + 2])
        at += max(length, 2)
        pixels = size[0] * size[1] if size else 0
        too_slow = scans > _JPEG_SCANS and scans * pixels > _JPEG_SCANS * max_pixels
        if too_slow or segments > _JPEG_SEGMENTS or junk > _JUNK:
            raise _busy(name, "JPEG")
    if scans == 0:
        raise UserError(f"{name}: the JPEG file is damaged or truncated: it has no image data.")
    return size


def _walk_png(data: bytes, name: str) -> tuple[int, int]:
    """The size from the header chunk; refuses millions of tiny chunks, which cost a step in Python each."""
    at = 8
    for _ in range(_PNG_CHUNKS):
        if at + 12 > len(data):
            return struct.unpack(">II", data[16:24])
        (length,) = struct.unpack_from(">I", data, at)
        at += 12 + length
    raise _busy(name, "PNG")


def _busy(name: str, kind: str) -> UserError:
    return UserError(f"{name}: the {kind} file is damaged or made to keep a decoder busy; it is not decoded.")


def _walk_gif(data: bytes, name: str, limit: int) -> int:
    """Frames counted on the block structure, stopping at `limit`; refuses endless comments and junk."""
    at = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    count, steps = 0, 0
    while at < len(data) and count < limit:
        steps += 1
        block = data[at]
        if block == 0x21:
            at += 2
        elif block == 0x2C and at + 10 < len(data):
            flags = data[at + 9]
            at += 11 + (3 << (flags & 7) + 1 if flags & 0x80 else 0)
            count += 1 if at < len(data) else 0
        elif block == 0x3B:
            break
        else:
            at += 1
            if steps > _JUNK:
                raise _busy(name, "GIF")
            continue
        while at < len(data) and data[at] and count < limit:
            at += data[at] + 1
            steps += 1
            if steps > _GIF_BLOCKS:
                raise _busy(name, "GIF")
        at += 1
    return max(count, 1)


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
        raise UserError(f"{what} ({_short(str(error) or repr(error))}).") from error


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


def _short(text: str, limit: int = 200) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
