"""Text fits its box, and the characters' boxes are where the ink is."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tessera.world import text as module
from tessera.world.rng import Rng
from tessera.world.scene import Sign
from tessera.world.text import (
    ALPHABET,
    CHART_ALPHABET,
    SIGN_COLOURS,
    WORDS,
    Face,
    draw_line,
    draw_sign,
    draw_text,
    fit_size,
    random_text,
    sign_aspect,
    text_layout,
)

FACES = get_args(Face)
texts = st.text(ALPHABET, min_size=1, max_size=8)


def ink_of(image: Image.Image) -> tuple[int, int, int, int]:
    box = image.convert("L").getbbox()
    assert box is not None
    return box


def test_the_fonts_and_their_licence_are_bundled() -> None:
    folder = Path(module.__file__).with_name("fonts")
    assert {path.name for path in folder.iterdir()} == {
        "DejaVuSans-Bold.ttf",
        "DejaVuSansMono-Bold.ttf",
        "LICENSE.txt",
    }
    assert "Bitstream Vera" in (folder / "LICENSE.txt").read_text()


@pytest.mark.parametrize("face", FACES)
def test_every_character_has_its_own_shape(face: Face) -> None:
    shapes = set()
    for char in CHART_ALPHABET.replace(" ", ""):
        image = Image.new("RGB", (60, 60))
        draw_line(image, char, 10, 45, 40, (255, 255, 255), face)
        ink_of(image)
        shapes.add(image.tobytes())
    assert len(shapes) == len(CHART_ALPHABET) - 1


@settings(max_examples=150, deadline=None)
@given(texts, st.integers(10, 260), st.integers(7, 110), st.floats(0, 0.99), st.sampled_from(FACES))
def test_fitted_text_stays_in_its_box(text: str, width: int, height: int, offset: float, face: Face) -> None:
    image = Image.new("RGB", (width + 41, height + 41))
    box = (20 + offset, 20 + offset, 20 + offset + width, 20 + offset + height)
    boxes = draw_text(image, text, box, (255, 255, 255), face=face)
    x0, y0, x1, y1 = ink_of(image)
    size = fit_size(text, width, height, face)
    if size > 1:
        assert x0 >= int(box[0])
        assert y0 >= int(box[1])
        assert x1 <= box[2] + 1
        assert y1 <= box[3] + 1
        wide, tall = boxes[-1][2] - boxes[0][0], boxes[0][3] - boxes[0][1]
        assert wide <= width
        assert tall <= height
    if size > 12:  # and it is as large as the box allows
        assert wide / width > 0.75 or tall / height > 0.75


@settings(max_examples=100, deadline=None)
@given(texts, st.integers(6, 70), st.sampled_from(FACES))
def test_character_boxes_stand_in_order_and_cover_the_ink(text: str, size: int, face: Face) -> None:
    image = Image.new("RGB", (text_layout(text, size, face)[1] + 40, 2 * size + 20))
    boxes = draw_line(image, text, 20, size + 10, size, (255, 255, 255), face)
    assert len(boxes) == len(text)
    for (_, _, right, _), (left, _, _, _) in pairwise(boxes):
        assert right == left
    assert all(x1 > x0 for x0, _, x1, _ in boxes)
    assert len({(y0, y1) for _, y0, _, y1 in boxes}) == 1
    x0, y0, x1, y1 = ink_of(image)
    assert (boxes[0][0], boxes[0][1]) <= (x0, y0)
    assert boxes[0][1] == y0
    assert boxes[0][3] == y1
    assert boxes[-1][2] >= x1
    pixels = np.asarray(image.convert("L"))
    for left, top, right, bottom in boxes:
        assert pixels[int(top) : int(bottom), int(left) : int(right)].max() > 0


@pytest.mark.parametrize("char", ALPHABET)
def test_a_character_keeps_to_its_own_box(char: str) -> None:
    """Only a sliver of ink may reach into the neighbour's box (J hangs over to the left)."""
    for size in (8, 12, 20, 40):
        image = Image.new("RGB", (6 * size, 2 * size))
        boxes = draw_line(image, f" {char} ", 2 * size, int(1.5 * size), size, (255, 255, 255))
        pixels = np.asarray(image.convert("L")).astype(float)
        left, _, right, _ = boxes[1]
        assert pixels[:, int(left) : int(right)].sum() > 0.9 * pixels.sum()


def test_text_that_need_not_fit_keeps_the_height() -> None:
    image = Image.new("RGB", (400, 40))
    boxes = draw_text(image, "WWWWWW", (180, 10, 220, 30), (255, 255, 255), fit=False)
    assert boxes[0][0] < 180 < 220 < boxes[-1][2]
    assert 10 <= boxes[0][1] < boxes[0][3] <= 30


def test_no_text_no_boxes() -> None:
    image = Image.new("RGB", (20, 20))
    assert draw_text(image, "", (0, 0, 20, 20), (255, 255, 255)) == []
    assert image.getbbox() is None


def test_layout_grows_with_the_size() -> None:
    widths = [text_layout("TESSERA", height)[1] for height in (8, 12, 20, 40, 80)]
    assert widths == sorted(set(widths))
    assert text_layout("A", 30)[0].size == 30


def test_cached_glyphs_draw_like_new_ones() -> None:
    images = []
    for _ in range(2):
        module._cached_glyph.cache_clear()
        for _ in range(2):
            image = Image.new("RGB", (112, 40))
            draw_text(image, "Q7JX", (5, 5, 100, 35), (200, 100, 50))
            images.append(image.tobytes())
    assert len(set(images)) == 1


def test_signs_differ_in_their_board_colour() -> None:
    assert len({name for name, _, _ in SIGN_COLOURS}) == len({fill for _, fill, _ in SIGN_COLOURS}) == len(SIGN_COLOURS)
    for _, fill, ink in SIGN_COLOURS:
        assert abs(sum(fill) - sum(ink)) > 300  # readable


@settings(max_examples=60, deadline=None)
@given(
    texts,
    st.sampled_from((64, 112, 224, 448)),
    st.integers(0, 5),
    st.floats(0.1, 0.3),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_sign_holds_its_text(text: str, pixels: int, palette: int, tall: float, u: float, v: float) -> None:
    wide = min(0.98, tall * sign_aspect(text))
    box = ((1 - wide) * u, (1 - tall) * v, (1 - wide) * u + wide, (1 - tall) * v + tall)
    image = Image.new("RGB", (pixels, pixels), (90, 160, 40))
    drawn = draw_sign(image, Sign(text=text, box=box, palette=palette))
    assert "".join(char for char, _ in drawn) == text
    slack = 1.01 / pixels
    for _, (x0, y0, x1, y1) in drawn:
        assert box[0] - slack <= x0 < x1 <= box[2] + slack
        assert box[1] - slack <= y0 < y1 <= box[3] + slack
    _, fill, _ = SIGN_COLOURS[palette]
    board = (np.asarray(image) == fill).all(axis=2).mean() / (wide * tall)
    assert board > (0.25 if tall * pixels >= 16 else 0.05)
    if wide < 0.98 and tall * pixels >= 16:  # a board of the natural aspect is filled by its text
        assert drawn[0][1][3] - drawn[0][1][1] > 0.5 * tall


def test_what_signs_say() -> None:
    rng = Rng("signs")
    said = [random_text(rng) for _ in range(4000)]
    assert all(1 <= len(text) <= 6 and set(text) <= set(ALPHABET) for text in said)
    again = Rng("signs")
    assert said == [random_text(again) for _ in range(4000)]
    lengths = Counter(len(text) for text in said)
    assert lengths.most_common(1)[0][0] == 4
    words = sum(text in WORDS for text in said) / len(said)
    numbers = sum(text.isdigit() for text in said) / len(said)
    assert 0.3 < words < 0.45
    assert 0.07 < numbers < 0.15
    assert len(set(said)) > 2000


def test_words_are_short_upper_case_and_unique() -> None:
    assert len(set(WORDS)) == len(WORDS) >= 300
    assert all(2 <= len(word) <= 6 and word.isalpha() and word.isupper() for word in WORDS)
