"""Every way in gives an upright RGB image; everything that cannot be read gives one sentence."""

from __future__ import annotations

import base64
import io
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageSequence

from tessera.data.images import MAX_FRAMES, frames, open_image, to_rgb
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


def quadrants(width: int = 24, height: int = 16) -> Image.Image:
    """Top left red, top right green, bottom left blue, bottom right white."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 255, 0, 0
    pixels[: height // 2, width // 2 :] = 0, 255, 0
    pixels[height // 2 :, : width // 2] = 0, 0, 255
    pixels[height // 2 :, width // 2 :] = 255, 255, 255
    return Image.fromarray(pixels)


def same(one: Image.Image, other: Image.Image, tolerance: int = 0) -> bool:
    if one.mode != "RGB" or one.size != other.size:
        return False
    difference = np.asarray(one, np.int16) - np.asarray(other.convert("RGB"), np.int16)
    return int(np.abs(difference).max()) <= tolerance


def sentence(source: Any, **limits: int) -> str:
    with pytest.raises(UserError) as caught:
        open_image(source, **limits)
    return str(caught.value)


# ---- ways in


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_every_format_by_content_whatever_the_name(kind: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True}
    data = encode(quadrants(), kind, **options)
    wrong_name = tmp_path / "picture.txt"
    wrong_name.write_bytes(data)
    sources: list[Any] = [
        data,
        bytearray(data),
        memoryview(data),
        io.BytesIO(data),
        wrong_name,
        str(wrong_name),
    ]
    for source in sources:
        opened = open_image(source)
        assert same(opened, quadrants(), 4 if kind == "JPEG" else 0)
        assert type(opened) is Image.Image
        assert not opened.info


def test_data_urls() -> None:
    data = encode(quadrants(), "PNG")
    body = base64.b64encode(data).decode()
    assert same(open_image(f"data:image/png;base64,{body}"), quadrants())
    assert same(open_image(f"data:;base64,{body.rstrip('=')}"), quadrants())
    wrapped = "\n".join(body[i : i + 60] for i in range(0, len(body), 60))
    assert same(open_image(f"DATA:image/png;base64,{wrapped}"), quadrants())
    percent = "".join(f"%{byte:02x}" for byte in data)
    assert same(open_image(f"data:image/png,{percent}"), quadrants())
    assert "base64" in sentence("data:image/png;base64,!!!!")
    assert "no comma" in sentence("data:image/png;base64")
    assert "0 bytes" in sentence("data:image/png;base64,")
    assert "limit" in sentence(f"data:;base64,{body}", max_bytes=10)


@pytest.mark.parametrize("address", ["http://a.example/x.png", "https://a.example/x.png", "file:///etc/passwd"])
def test_addresses_are_refused(address: str) -> None:
    assert "nothing is downloaded" in sentence(address)


def test_other_types_are_refused() -> None:
    assert "got int" in sentence(3)
    assert "binary mode" in sentence(io.StringIO("text"))
    closed = io.BytesIO(b"x")
    closed.close()
    assert "cannot be read" in sentence(closed)


def test_a_pil_image_is_converted_and_not_changed() -> None:
    image = quadrants().convert("P")
    assert same(open_image(image), quadrants())
    assert image.mode == "P"
    assert "limit" in sentence(Image.new("1", (100, 100)), max_pixels=9999)
    lazy = Image.open(io.BytesIO(encode(quadrants(), "PNG")[:-30]))
    with pytest.raises(UserError, match="damaged"):
        to_rgb(lazy)
    gone = Image.open(io.BytesIO(encode(quadrants(), "PNG")))
    gone.close()
    with pytest.raises(UserError):
        open_image(gone)


# ---- refusals


def test_files_that_are_not_there_or_not_files(tmp_path: Path) -> None:
    assert "no such file" in sentence(tmp_path / "none.png")
    assert "is a folder" in sentence(tmp_path)
    (tmp_path / "empty.png").touch()
    assert "0 bytes" in sentence(tmp_path / "empty.png")
    assert "empty.png" in sentence(tmp_path / "empty.png")
    assert "cannot be read" in sentence("a\0b")
    assert len(sentence("x" * 100_000)) < 400


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"hello world", "not an image"),
        (b"\0" * 100, "not an image"),
        (b"BMW is a car", "not an image"),
        (b"II*\0rest", "TIFF"),
        (b"\0\0\0\x20ftypavif....", "AVIF"),
        (b"\0\0\0\x20ftypheic....", "HEIC"),
        (b"\0\0\0\x20ftypisom....", "MP4"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"%PDF-1.7", "PDF"),
        (b"PK\x03\x04", "archive"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"<svg xmlns=''/>", "SVG"),
    ],
)
def test_what_it_is_instead(data: bytes, word: str) -> None:
    text = sentence(data)
    assert word in text
    assert "PNG, JPEG, WebP, GIF and BMP" in text


def test_real_tiff_is_refused_although_pillow_could_read_it() -> None:
    assert "TIFF" in sentence(encode(quadrants(), "TIFF"))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_truncated(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encode(noise, kind)
    for keep in (len(data) * 2 // 3, len(data) // 3, 20):
        text = sentence(data[:keep])
        assert "damaged" in text
        assert kind in text


def test_limits_are_the_callers() -> None:
    data = encode(Image.new("RGB", (100, 50)), "PNG")
    assert open_image(data, max_pixels=5000).size == (100, 50)
    assert "100 x 50" in sentence(data, max_pixels=4999)
    assert open_image(data, max_bytes=len(data)).size == (100, 50)
    assert f"{len(data) - 1:,} bytes" in sentence(data, max_bytes=len(data) - 1)
    assert "limit" in sentence(io.BytesIO(data), max_bytes=len(data) - 1)


def test_long_files_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "long.png"
    with path.open("wb") as stream:
        stream.truncate(10**12)
    assert "1,000,000,000,000 bytes" in sentence(path)


def test_zero_pixels() -> None:
    assert "no pixels (0 x 5)" in sentence(png(0, 5, 8, 0, b"\0"))
    assert "no pixels" in sentence(b"BM" + b"\0" * 8 + struct.pack("<IIiiHHIIIIII", 54, 40, 0, 9, 1, 24, *[0] * 6))


# ---- conversions


def test_cmyk_jpeg() -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image.paste((255, 0, 0, 0), (8, 0, 16, 16))
    data = encode(image, "JPEG", quality=100, subsampling=0)
    assert b"Adobe" in data[:40]  # Adobe's marker: the stored values are inverted
    opened = open_image(data)
    assert same(opened.crop((0, 0, 6, 16)), Image.new("RGB", (6, 16), (255, 0, 0)), 4)
    assert same(opened.crop((10, 0, 16, 16)), Image.new("RGB", (6, 16), (0, 255, 255)), 4)
    black = encode(Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "JPEG")
    assert same(open_image(black), Image.new("RGB", (8, 8)), 2)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    values = [0, 255, 256, 0x8000, 0xFFFF]
    rows = b"\0" + b"".join(struct.pack(">H", v) for v in values)
    expected = [0, 1, 1, 128, 255]
    grey = np.asarray(open_image(png(5, 1, 16, 0, rows)))
    assert np.abs(grey[0].astype(int) - np.array(expected)[:, None]).max() <= 1
    assert grey[0, 0].tolist() == [0, 0, 0]
    assert grey[0, 4].tolist() == [255, 255, 255]
    colour = b"\0" + b"".join(struct.pack(">HHH", v, 0, 0xFFFF) for v in values)
    rgb = np.asarray(open_image(png(5, 1, 16, 2, colour)))
    assert np.abs(rgb[0].astype(int) - np.array([[v, 0, 255] for v in expected])).max() <= 1
    deep = Image.fromarray(np.array([[-5, 0, 65535, 70_000]], np.int32))
    assert deep.mode == "I"
    assert np.asarray(to_rgb(deep))[0, :, 0].tolist() == [0, 0, 255, 255]


def test_sixteen_bits_with_alpha_or_a_colour_key() -> None:
    rgba = b"\0" + struct.pack(">HHHH", 0xFFFF, 0, 0, 0) + struct.pack(">HHHH", 0xFFFF, 0, 0, 0xFFFF)
    assert np.asarray(open_image(png(2, 1, 16, 6, rgba)))[0].tolist() == [[255, 255, 255], [255, 0, 0]]
    la = b"\0" + struct.pack(">HH", 0, 0) + struct.pack(">HH", 0, 0xFFFF)
    assert np.asarray(open_image(png(2, 1, 16, 4, la)))[0].tolist() == [[255] * 3, [0] * 3]
    grey = b"\0" + struct.pack(">HH", 0x1234, 0)
    keyed = png(2, 1, 16, 0, grey, (b"tRNS", struct.pack(">H", 0x1234)))
    assert np.asarray(open_image(keyed))[0].tolist() == [[255] * 3, [0] * 3]
    rgb = b"\0" + struct.pack(">HHH", 0x1000, 0x2000, 0x3000) + struct.pack(">HHH", 0, 0, 0)
    keyed = png(2, 1, 16, 2, rgb, (b"tRNS", struct.pack(">HHH", 0x1000, 0x2000, 0x3000)))
    assert np.asarray(open_image(keyed))[0].tolist() == [[255] * 3, [0] * 3]


def test_alpha_is_composited_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    for kind in ("PNG", "WEBP"):
        assert same(open_image(encode(clear, kind)), Image.new("RGB", (4, 4), "white"))
    assert same(open_image(encode(half, "PNG")), Image.new("RGB", (4, 4), (127, 127, 127)), 1)
    la = Image.new("LA", (4, 4), (0, 0))
    la.putpixel((1, 1), (40, 255))
    opened = open_image(encode(la, "PNG"))
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((1, 1)) == (40, 40, 40)


def test_palettes_and_their_transparency() -> None:
    palette = quadrants().convert("P", palette=Image.Palette.ADAPTIVE)
    assert same(open_image(encode(palette, "PNG")), quadrants())
    red = palette.getpixel((0, 0))
    for transparency in (red, bytes(0 if i == red else 255 for i in range(4))):
        opened = open_image(encode(palette, "PNG", transparency=transparency))
        assert opened.getpixel((0, 0)) == (255, 255, 255)
        assert opened.getpixel((23, 0)) == (0, 255, 0)
    opened = open_image(encode(palette, "GIF", transparency=red))
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((0, 15)) == (0, 0, 255)


def test_colour_keys_and_bilevel() -> None:
    grey = encode(Image.new("L", (2, 1), 7), "PNG", transparency=7)
    assert open_image(grey).getpixel((0, 0)) == (255, 255, 255)
    rgb = encode(Image.new("RGB", (2, 1), (1, 2, 3)), "PNG", transparency=(1, 2, 3))
    assert open_image(rgb).getpixel((0, 0)) == (255, 255, 255)
    bits = Image.new("1", (3, 1), 1)
    bits.putpixel((1, 0), 0)
    assert np.asarray(open_image(encode(bits, "PNG")))[0, :, 0].tolist() == [255, 0, 255]


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBa",
        "RGBX",
        "CMYK",
        "YCbCr",
        "HSV",
        "I",
        "I;16",
        "I;16B",
    ],
)
def test_every_pil_mode_becomes_rgb(mode: str) -> None:
    image = Image.new(mode, (3, 2))
    assert to_rgb(image).mode == "RGB"
    assert to_rgb(image).size == (3, 2)


def test_floating_point_images_are_refused() -> None:
    with pytest.raises(UserError, match="floating-point"):
        to_rgb(Image.new("F", (3, 2)))


def test_an_upright_rgb_image_is_not_copied() -> None:
    image = quadrants()
    assert to_rgb(image) is image


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(kind: str, orientation: int) -> None:
    stored = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_90],
        6: [Image.Transpose.ROTATE_90],  # shown by turning it back, clockwise
        7: [Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_270],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    image = quadrants(32, 16)
    for step in stored:
        image = image.transpose(step)
    exif = Image.Exif()
    exif[0x010E] = "a description longer than four bytes"
    exif[0x0112] = orientation
    exact: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "PNG": {},
        "WEBP": {"lossless": True},
    }
    data = encode(image, kind, exif=exif, **exact[kind])
    opened = open_image(data)
    assert same(opened, quadrants(32, 16), 6)
    assert same(to_rgb(opened), opened), "a second pass must not turn it again"
    with Image.open(io.BytesIO(data)) as lazy:
        assert same(to_rgb(lazy), quadrants(32, 16), 6)


def test_damaged_exif_does_not_spoil_the_picture() -> None:
    for block in (
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x07" * 50,
    ):
        data = encode(quadrants(), "JPEG", exif=block, quality=100, subsampling=0)
        assert same(open_image(data), quadrants(), 4)


def test_warnings_are_kept_in_and_filters_restored() -> None:
    entry = struct.pack("<HHII", 0x0131, 2, 1000, 2**31)
    block = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + b"\0\0\0\0"
    data = encode(quadrants(), "JPEG", exif=block)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        workers = [threading.Thread(target=lambda: [open_image(data) for _ in range(20)]) for _ in range(4)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert list(warnings.filters) == before


# ---- animations


def clip(kind: str, count: int) -> bytes:
    colours = [Image.new("RGB", (8, 6), (i * 10 % 256, 0, i)) for i in range(count)]
    options = {"lossless": True} if kind == "WEBP" else {}
    return encode(colours[0], kind, save_all=True, append_images=colours[1:], duration=50, **options)


def shade(image: Image.Image) -> int:
    assert image.mode == "RGB"
    value = image.getpixel((3, 3))
    assert isinstance(value, tuple)
    return round(value[0] / 10)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations(kind: str) -> None:
    data = clip(kind, 10)
    assert shade(open_image(data)) == 0
    assert [shade(f) for f in frames(data, 10)] == list(range(10))
    assert [shade(f) for f in frames(data, 50)] == list(range(10))
    assert [shade(f) for f in frames(data, 1)] == [0]
    assert [shade(f) for f in frames(data, 2)] == [0, 9]
    assert [shade(f) for f in frames(data, 4)] == [0, 3, 6, 9]
    assert [shade(f) for f in frames(data, 3)] == [0, 5, 9]


def test_frames_of_stills_and_errors() -> None:
    assert len(frames(encode(quadrants(), "JPEG"), 5)) == 1
    assert same(frames(quadrants(), 5)[0], quadrants())
    with pytest.raises(UserError, match="at least one"):
        frames(quadrants(), 0)
    with pytest.raises(UserError, match="damaged"):
        frames(clip("GIF", 10)[:-60], 10)


def test_transparent_gif_frames_build_on_each_other() -> None:
    data = encode(
        Image.new("RGB", (8, 8), "red"),
        "GIF",
        save_all=True,
        append_images=[quadrants(8, 8), Image.new("RGB", (8, 8), "blue")],
    )
    with Image.open(io.BytesIO(data)) as reference:
        expected = [frame.convert("RGB") for frame in ImageSequence.Iterator(reference)]
    for ours, theirs in zip(frames(data, 3), expected, strict=True):
        assert same(ours, theirs)


def test_endless_clips_are_refused() -> None:
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0"
    assert len(frames(head + frame * 3 + b";", 5)) == 3
    with pytest.raises(UserError, match="too many"):
        frames(head + frame * (MAX_FRAMES + 1) + b";", 3)
    with pytest.raises(UserError, match="too many"):
        frames(clip("WEBP", 40), 3, max_pixels=8 * 6)
    assert open_image(head + frame * (MAX_FRAMES + 1)).size == (1, 1)


def test_a_later_frame_cannot_enlarge_the_clip() -> None:
    head = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0x80, 0, 0) + bytes(6)
    small = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\2\2\x44\1\0"
    wide = b"," + struct.pack("<HHHHB", 2, 0, 1, 1, 0) + b"\2\2\x44\1\0"
    assert [f.size for f in frames(head + small + wide + b";", 2)] == [(1, 1), (1, 1)]
