"""What the bytes of an image file say before a decoder sees them: container, size, and whether it would keep one busy.

Read here and not by a library, because every step must have a limit: files are untrusted.
"""

from __future__ import annotations

import re
import struct

from tessera.errors import UserError

# More scans than any encoder writes; each scan of a progressive JPEG costs a pass over all pixels.
_JPEG_SCANS = 24
_JPEG_SEGMENTS = 8192
_PNG_CHUNKS = 100_000
_GIF_BLOCKS = 1_000_000
_JUNK = 65_536

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


def container(data: bytes) -> str | None:
    """Pillow's name of the container, by its first bytes; None for none that is read."""
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


def what_else(data: bytes) -> str:
    """What bytes are that no reader takes, as the end of a sentence."""
    for pattern, what in _FOREIGN:
        if pattern.match(data[:64]):
            return f"is {what}"
    return f"is not an image (its first bytes are {data[:8]!r})"


def check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Raises `UserError` for (width, height) without pixels, or with more than `max_pixels`."""
    width, height = size
    if width < 1 or height < 1:
        raise UserError(f"{name}: the image has no pixels ({width} x {height}).")
    if width * height > max_pixels:
        raise UserError(
            f"{name}: the image has {width:,} x {height:,} pixels, {width * height / 1e6:,.1f} million; the "
            f"limit is {max_pixels / 1e6:,.1f} million. Make it smaller first."
        )


def header_size(kind: str, data: bytes, name: str, max_pixels: int) -> tuple[int, int] | None:
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
            walk_gif(data, name, 1)
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


def walk_gif(data: bytes, name: str, limit: int) -> int:
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
