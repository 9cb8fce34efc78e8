"""Damaged and hostile bytes: an image or a sentence, never a crash, a warning or minutes of work."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tessera.data.images import frames, open_image
from tessera.errors import UserError


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG written by hand: `rows` is what is compressed, filter bytes included."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = b"".join(chunk(name, data) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def sentence(source: Any, **limits: int) -> str:
    with pytest.raises(UserError) as caught:
        open_image(source, **limits)
    return str(caught.value)


# ---- hostile headers


def riff(body: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


HUGE = {
    "png": png(50_000, 50_000, 8, 2, b"\0"),
    "jpeg": b"\xff\xd8\xff\xe0\0\x04ab\xff\xff\xff\xc0\0\x0b\x08"
    + struct.pack(">HH", 50_000, 50_000)
    + b"\1\1\x11\0\xff\xda\0\x08\1\1\0\0\x3f\0",
    "bmp": b"BM" + b"\0" * 8 + struct.pack("<IIiiHHIIIIII", 54, 40, 50_000, -50_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "gif": b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b"," + struct.pack("<HHHH", 0, 0, 50_000, 50_000) + b"\0\2\0;",
    "webp-x": riff(b"VP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + (49_999).to_bytes(3, "little") * 2),
}


@pytest.mark.parametrize("kind", HUGE)
def test_huge_headers_are_refused_before_decoding(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", never)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    assert len(HUGE[kind]) < 200
    text = sentence(HUGE[kind])
    if kind == "gif":  # its header says 1 x 1, the frame in it 50,000 x 50,000: Pillow refuses in its own words
        assert "too many pixels" in text
    else:
        assert "50,000 x 50,000" in text
        assert "limit is 64.0 million" in text


def test_a_gif_frame_larger_than_its_screen_counts() -> None:
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    text = sentence(head + b"," + struct.pack("<HHHH", 0, 0, 10_000, 9_000) + b"\0\2\0;")
    assert "10,000 x 9,000" in text


def test_lossy_and_lossless_webp_headers() -> None:
    lossy = riff(b"VP8 " + struct.pack("<I", 20) + b"\0\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_000, 16_000) + b"\0" * 9)
    bits = 15_999 | 15_999 << 14
    lossless = riff(b"VP8L" + struct.pack("<I", 20) + b"\x2f" + struct.pack("<I", bits) + b"\0" * 9)
    for data in (lossy, lossless):
        assert "16,000 x 16,000" in sentence(data)


def test_text_bombs_are_refused() -> None:
    bomb = b"Comment\0\0" + zlib.compress(b"\0" * 5_000_000)
    assert len(bomb) < 100_000
    assert "damaged" in sentence(png(1, 1, 8, 0, b"\0\0", (b"zTXt", bomb)))
    profile = b"name\0\0" + zlib.compress(b"\0" * 5_000_000)
    assert "damaged" in sentence(png(1, 1, 8, 0, b"\0\0", (b"iCCP", profile)))
    text = (b"zTXt", b"Comment\0\0" + zlib.compress(b"\0" * 1_000_000))
    assert "damaged" in sentence(png(1, 1, 8, 0, b"\0\0", *[text] * 70))
    assert open_image(png(1, 1, 8, 0, b"\0\0", *[text] * 3)).size == (1, 1)


def test_pixel_bomb_rows_beyond_the_header_are_ignored() -> None:
    assert open_image(png(1, 1, 8, 0, b"\0\x07" + b"\0" * 10_000_000)).getpixel((0, 0)) == (7, 7, 7)


def test_endless_jpeg_scans_and_padding_are_refused() -> None:
    data = encode(Image.new("L", (64, 64), 9), "JPEG", progressive=True)
    start = data.index(b"\xff\xda")
    second = data.index(b"\xff\xda", start + 2)
    scans = data[:second] + data[second:-2] * 2000 + b"\xff\xd9"
    assert "busy" in sentence(scans, max_pixels=64 * 64)
    assert "busy" in sentence(data[:2] + b"\xff" * 1_000_000 + data[2:])
    assert "busy" in sentence(data[:2] + b"\xff\xfe\0\2" * 100_000 + data[2:])
    assert open_image(data[:2] + b"\xff" * 100 + data[2:]).getpixel((5, 5)) == (9, 9, 9)
    long = b"\xff\xd8\xff" + b"\xff" * 20_000_000
    assert "no image data" in sentence(long)
    assert "no image data" in sentence(b"\xff\xd8" + b"\xff\xd0" * 10_000_000)


def test_endless_gif_comments_and_junk_are_refused() -> None:
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0;"
    assert "busy" in sentence(screen + b"!\xfe" + b"\1a" * 2_000_000 + b"\0" + frame)
    assert "busy" in sentence(screen + b"a" * 100_000 + frame)
    assert open_image(screen + b"!\xfe" + b"\1a" * 1000 + b"\0" + frame).size == (1, 1)


def test_run_length_encoded_bmp_is_refused() -> None:
    head = b"BM" + b"\0" * 8 + struct.pack("<IIiiHHIIIIII", 54, 40, 8000, 8000, 1, 8, 1, 0, 0, 0, 0, 0)
    assert "run-length" in sentence(head + b"\0" * 100)


def test_millions_of_png_chunks_are_refused() -> None:
    chunk = struct.pack(">I", 0) + b"aaAa" + struct.pack(">I", zlib.crc32(b"aaAa"))
    data = png(1, 1, 8, 0, b"\0\7")
    assert "busy" in sentence(data[:33] + chunk * 1_000_000 + data[33:])
    assert open_image(data[:33] + chunk * 1000 + data[33:]).getpixel((0, 0)) == (7, 7, 7)


# ---- damage

_NOISE = np.random.default_rng(5).integers(0, 256, (20, 24, 4), np.uint8)


def _samples() -> dict[str, bytes]:
    colour = Image.fromarray(_NOISE[..., :3])
    alpha = Image.fromarray(_NOISE)
    smooth = colour.resize((3, 2)).resize((32, 24), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "text that is longer than four bytes"
    exif[0x011A] = 72.5
    clip = [colour, colour.transpose(Image.Transpose.ROTATE_180), smooth.resize(colour.size)]
    palette = colour.quantize(16)
    return {
        "png": encode(alpha, "PNG", exif=exif),
        "png-palette": encode(palette, "PNG", transparency=3),
        "png-16": png(3, 2, 16, 2, b"\0" + bytes(range(18)) + b"\1" + bytes(range(18)), (b"tRNS", bytes(range(6)))),
        "apng": encode(clip[0], "PNG", save_all=True, append_images=clip[1:]),
        "jpeg": encode(colour, "JPEG", exif=exif, comment=b"a comment"),
        "jpeg-progressive": encode(smooth, "JPEG", progressive=True),
        "jpeg-cmyk": encode(smooth.convert("CMYK"), "JPEG"),
        "webp": encode(smooth, "WEBP", exif=exif),
        "webp-lossless": encode(alpha, "WEBP", lossless=True),
        "webp-clip": encode(clip[0], "WEBP", save_all=True, append_images=clip[1:]),
        "gif": encode(palette, "GIF", comment=b"a comment", transparency=2),
        "gif-clip": encode(clip[0], "GIF", save_all=True, append_images=clip[1:]),
        "bmp": encode(smooth, "BMP"),
        "bmp-palette": encode(palette, "BMP"),
    }


SAMPLES = _samples()


def _survive(data: bytes) -> None:
    said = ""
    try:
        opened = open_image(data, max_pixels=1_000_000)
        assert opened.mode == "RGB"
        assert np.asarray(opened).shape == (opened.height, opened.width, 3)
    except UserError as error:
        said = str(error)
    assert said == "" or 20 < len(said) < 500
    with contextlib.suppress(UserError):
        assert 1 <= len(frames(data, 3, max_pixels=1_000_000)) <= 3


def _patched(data: bytes, patches: list[tuple[float, bytes]]) -> bytes:
    """`patches` are (place as a fraction of the length, bytes written there)."""
    changed = bytearray(data)
    for place, patch in patches:
        at = int(place * len(data))
        changed[at : at + len(patch)] = patch
    return bytes(changed)


_patches = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.one_of(st.binary(min_size=1, max_size=4), st.just(b"\xff" * 4), st.just(b"\0" * 4)),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.parametrize("kind", SAMPLES)
def test_undamaged_samples_open(kind: str) -> None:
    assert open_image(SAMPLES[kind]).mode == "RGB"


@pytest.mark.parametrize("kind", SAMPLES)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(patches=_patches, keep=st.one_of(st.just(1.0), st.floats(0, 1)), tail=st.binary(max_size=8))
def test_damaged_bytes(kind: str, patches: list[tuple[float, bytes]], keep: float, tail: bytes) -> None:
    data = _patched(SAMPLES[kind], patches)
    _survive(data[: int(keep * len(data))] + tail)


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_header_byte_flipped(kind: str) -> None:
    data = SAMPLES[kind]
    for at in range(min(len(data), 48)):
        for value in (data[at] ^ 0xFF, data[at] ^ 0x01):
            _survive(data[:at] + bytes([value]) + data[at + 1 :])


@pytest.mark.parametrize("kind", SAMPLES)
def test_every_truncation_of_the_head(kind: str) -> None:
    for keep in range(64):
        _survive(SAMPLES[kind][:keep])


def _with_checksums(data: bytes) -> bytes:
    """A PNG whose chunk checksums are made right again, so that damage reaches the code behind them."""
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body = data[at + 4 : at + 8 + length]
        out += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return bytes(out)


@pytest.mark.parametrize("kind", ["png", "png-palette", "png-16", "apng"])
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(patches=_patches)
def test_damaged_png_with_good_checksums(kind: str, patches: list[tuple[float, bytes]]) -> None:
    _survive(_with_checksums(_patched(SAMPLES[kind], patches)))


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(block=st.binary(max_size=80), order=st.sampled_from([b"II*\0\x08\0\0\0", b"MM\0*\0\0\0\x08", b""]))
def test_damaged_exif(block: bytes, order: bytes) -> None:
    data = encode(Image.new("RGB", (8, 6)), "JPEG", exif=b"Exif\0\0" + order + block)
    assert open_image(data).size in ((8, 6), (6, 8))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.sampled_from([b"", b"GIF89a", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"RIFF\xff\0\0\0WEBPVP8X"]),
    st.binary(max_size=200),
)
def test_random_bytes(head: bytes, body: bytes) -> None:
    _survive(head + body)
