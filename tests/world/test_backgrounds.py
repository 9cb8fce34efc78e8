"""Backgrounds have one colour that anybody would name, and the same pixels everywhere."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.errors import UserError
from tessera.world import backgrounds as module
from tessera.world.backgrounds import (
    COLOURS,
    KINDS,
    TINTS,
    Texture,
    contrast_ink,
    draw_background,
    nearest_colour,
    sample_background,
    shade,
    value_noise,
)
from tessera.world.rng import Rng
from tessera.world.scene import Background


def test_colours_are_far_apart() -> None:
    for a, b in combinations(COLOURS.values(), 2):
        assert sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) ** 0.5 > 70
    assert len(COLOURS) == 12
    assert len(set(TINTS)) == 6
    assert set(TINTS) <= set(COLOURS)
    assert all(nearest_colour(rgb) == name for name, rgb in COLOURS.items())


@pytest.mark.parametrize("colour", COLOURS)
def test_a_shade_bears_its_colours_name(colour: str) -> None:
    for towards in (0, 255):
        for percent in range(0, 101, 7):
            assert nearest_colour(shade(colour, towards, percent)) == colour


@pytest.mark.parametrize("colour", COLOURS)
def test_ink_is_readable(colour: str) -> None:
    ink, fill = (np.array(rgb) @ np.array([0.299, 0.587, 0.114]) for rgb in (contrast_ink(COLOURS[colour]), COLOURS[colour]))
    assert abs(ink - fill) > 90


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 1 << 30), st.integers(64, 200), st.integers(64, 200))  # the world draws no smaller picture
def test_the_named_colour_dominates(seed: int, width: int, height: int) -> None:
    background = sample_background(Rng("background", seed))
    image = draw_background(background, width, height)
    assert image.mode == "RGB"
    assert image.size == (width, height)
    pixels = np.asarray(image).reshape(-1, 3).astype(np.int32)
    palette = np.array(list(COLOURS.values()))
    nearest = ((pixels[:, None] - palette[None]) ** 2).sum(-1).argmin(-1)
    shares = Counter(list(COLOURS)[i] for i in nearest)
    assert shares.most_common(1)[0][0] == background.colour
    assert shares[background.colour] > 0.6 * len(pixels)


def test_all_kinds_and_colours_are_drawn_and_repeat() -> None:
    drawn = [sample_background(Rng("all", i)) for i in range(1500)]
    assert {b.kind for b in drawn} == set(KINDS)
    assert {b.colour for b in drawn} == set(COLOURS)
    assert max(Counter(b.colour for b in drawn).values()) < 1.5 * len(drawn) / len(COLOURS)
    assert drawn == [sample_background(Rng("all", i)) for i in range(1500)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (112, 112), (64, 300), (300, 257)])
def test_drawing_twice_gives_the_same_bytes(kind: Texture, size: tuple[int, int]) -> None:
    for direction in range(4):
        background = Background(kind=kind, colour="teal", second=(1, 2, 3), direction=direction, seed=5)
        first = draw_background(background, *size)
        module._cached_mask.cache_clear()
        assert draw_background(background, *size).tobytes() == first.tobytes()


def test_a_gradient_runs_from_the_first_colour_to_the_second() -> None:
    ends = {0: ((0, 50), (99, 50)), 1: ((50, 0), (50, 99)), 2: ((0, 0), (99, 99)), 3: ((0, 99), (99, 0))}
    for direction, (start, end) in ends.items():
        background = Background(kind="gradient", colour="blue", second=(250, 240, 10), direction=direction)
        image = draw_background(background, 100, 100)
        assert image.getpixel(start) == COLOURS["blue"]
        assert image.getpixel(end) == (250, 240, 10)
        (x0, y0), (x1, y1) = start, end
        reds = [np.asarray(image)[y0 + (y1 - y0) * i // 99, x0 + (x1 - x0) * i // 99, 0] for i in range(100)]
        assert reds == sorted(reds)


@pytest.mark.parametrize(("kind", "low", "high"), [("stripes", 0.2, 0.3), ("dots", 0.15, 0.3), ("checks", 0.4, 0.6)])
def test_textures_cover_what_they_should(kind: Texture, low: float, high: float) -> None:
    for seed in range(3):
        background = Background(kind=kind, colour="black", second=(255, 255, 255), seed=seed)
        for size in ((112, 112), (300, 300)):
            assert low < np.asarray(draw_background(background, *size)).mean() / 255 - 0.08 < high + 0.02


def test_noise_is_exact_and_soft() -> None:
    level = np.asarray(value_noise(90, 70, 11)).astype(np.int64)
    rng = Rng("noise", 11)
    cells = 4 + 11 % 4
    grid = np.array([[rng.below(256) for _ in range(cells + 1)] for _ in range(cells + 1)], dtype=np.int64)
    exact = module._weights(70, cells).astype(np.int64) @ grid @ module._weights(90, cells).T.astype(np.int64)
    assert (level == exact >> 12).all()
    assert level.std() > 20
    assert np.abs(np.diff(level, axis=1)).max() < 40


def test_bad_backgrounds_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown background colour 'gren'.*'green'"):
        draw_background(Background(kind="plain", colour="gren"), 10, 10)
    with pytest.raises(UserError, match=r"unknown background kind 'stripe'.*'stripes'"):
        draw_background(Background(kind="stripe", colour="green"), 10, 10)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="1 x 1"):
        draw_background(Background(kind="plain", colour="green"), 0, 10)
