"""Corruptions repeat, grow with their strength, and refuse what they do not know."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tessera.errors import UserError
from tessera.world.backgrounds import draw_background, sample_background
from tessera.world.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from tessera.world.panels import draw_panel, sample_panel
from tessera.world.rng import Rng

# These move each pixel along one path: a stronger one is never nearer to the original, whatever the image.
EXACT = ("gaussian_noise", "shot_noise", "contrast", "brightness", "fog", "occlusion")


def picture(seed: int, width: int = 112, height: int = 112) -> Image.Image:
    rng = Rng("corruptions", seed)
    image = draw_background(sample_background(rng), width, height)
    if min(width, height) >= 64:
        draw_panel(image, sample_panel(rng))
    return image


def distance(a: Image.Image, b: Image.Image) -> float:
    return float(np.abs(np.asarray(a, dtype=np.int32) - np.asarray(b, dtype=np.int32)).mean())


def test_the_names() -> None:
    assert len(set(CORRUPTIONS)) == len(CORRUPTIONS) == 12


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_stronger_corruption_changes_more(name: str) -> None:
    pictures = [picture(seed) for seed in range(8)]
    means = [np.mean([distance(p, corrupt(p, name, strength, 3)) for p in pictures]) for strength in STRENGTHS]
    assert means[0] > 0.5
    assert all(weak < strong for weak, strong in pairwise(means))
    assert means[-1] > 1.5 * means[0]


@pytest.mark.parametrize("name", EXACT)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1 << 20), width=st.integers(1, 90), height=st.integers(1, 90))
def test_no_stronger_corruption_is_nearer(name: str, seed: int, width: int, height: int) -> None:
    image = picture(seed, width, height)
    distances = [distance(image, corrupt(image, name, strength, seed)) for strength in STRENGTHS]
    assert distances == sorted(distances)


@pytest.mark.parametrize("name", CORRUPTIONS)
@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    width=st.integers(1, 150),
    height=st.integers(1, 150),
    strength=st.integers(1, 5),
)
def test_corruptions_repeat_and_keep_size_and_original(name: str, seed: int, width: int, height: int, strength: int) -> None:
    image = picture(seed, width, height)
    before = image.tobytes()
    damaged = corrupt(image, name, strength, seed)
    assert image.tobytes() == before
    assert damaged.mode == "RGB"
    assert damaged.size == image.size
    assert damaged.tobytes() == corrupt(image, name, strength, seed).tobytes()


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "fog", "occlusion", "motion_blur", "rotate_hue"])
def test_the_seed_picks_the_damage(name: str) -> None:
    image = picture(3)
    assert len({corrupt(image, name, 3, seed).tobytes() for seed in range(8)}) > 1


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_images_of_other_modes_are_read_as_rgb(mode: str) -> None:
    assert corrupt(picture(1).convert(mode), "blur", 2).mode == "RGB"


def test_noise_has_the_deviation_it_should_have() -> None:
    grey = Image.new("RGB", (200, 200), (128, 128, 128))
    for strength, deviation in zip((1, 2, 3), (8, 16, 26), strict=True):
        noise = np.asarray(corrupt(grey, "gaussian_noise", strength, 1), dtype=float) - 128
        assert noise.std() == pytest.approx(deviation, rel=0.03)
        assert abs(noise.mean()) < 0.3
    dark, light = (
        np.asarray(corrupt(Image.new("RGB", (200, 200), (v, v, v)), "shot_noise", 1, 1), dtype=float).std() for v in (40, 160)
    )
    assert light / dark == pytest.approx(2, rel=0.1)


def test_extents_grow_with_the_image() -> None:
    """A corruption means the same at any size: damaged large, then reduced, is like damaged small."""
    large = picture(5, 448, 448)
    small = large.reduce(4)
    for name in ("blur", "pixelate", "downscale", "occlusion"):
        damaged = corrupt(large, name, 4, 2).reduce(4)
        assert distance(damaged, corrupt(small, name, 4, 2)) < 0.4 * distance(damaged, small), name


def test_unknown_names_and_strengths_are_refused() -> None:
    image = picture(1)
    with pytest.raises(UserError, match=r"unknown corruption 'motion_blurr'. Did you mean 'motion_blur'"):
        corrupt(image, "motion_blurr", 1)
    for strength in (0, 6, -1, 2.5, True, "3"):
        with pytest.raises(UserError, match="1, 2, 3, 4 or 5"):
            corrupt(image, "blur", strength)  # type: ignore[arg-type]
