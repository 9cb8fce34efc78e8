from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tessera.config import build
from tessera.errors import UserError
from tessera.hosts.pixels import Pixels, pictures
from tessera.parts.pixels.mini_monkey import Grid, MiniMonkey, candidates, closest, lines_apart, released_rule


def part(**options: object) -> MiniMonkey:
    return MiniMonkey(build(MiniMonkey.Config, {"tile": 8, **options}))


def lines(count: int) -> set[Fraction]:
    """Where `count` equal parts are cut."""
    return {Fraction(k, count) for k in range(1, count)}


def share_a_line(first: Grid, second: Grid) -> bool:
    return bool(lines(first[0]) & lines(second[0]) or lines(first[1]) & lines(second[1]))


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@given(width=st.integers(1, 4000), height=st.integers(1, 4000), tile=st.sampled_from([112, 448]))
def test_no_cut_line_is_cut_twice_whatever_the_picture(width: int, height: int, tile: int) -> None:
    detail, adaptive = part(tile=tile).grids(width, height)
    assert 4 <= detail[0] * detail[1] <= 12 and 3 <= adaptive[0] * adaptive[1] <= 9
    assert not share_a_line(detail, adaptive)


@pytest.mark.parametrize("most", range(1, 13))
def test_every_detail_grid_has_an_adaptive_grid_apart_from_it(most: int) -> None:
    for columns, rows in candidates(1, most):
        found = [grid for grid in candidates(3, 9) if not share_a_line((columns, rows), grid)]
        assert found
        assert found == [grid for grid in candidates(3, 9) if lines_apart((columns, rows), grid)]
        detail, adaptive = part(detail=(columns * rows, columns * rows)).grids(columns * 100, rows * 100)
        assert not share_a_line(detail, adaptive)


def test_the_released_rule_lets_lines_coincide() -> None:
    assert released_rule((4, 3), (2, 2)) and share_a_line((4, 3), (2, 2))
    assert released_rule((6, 2), (4, 1)) and share_a_line((6, 2), (4, 1))
    assert part(cuts="released", adaptive=(3, 7)).grids(8, 8) == ((2, 2), (2, 3))
    assert part().grids(8, 8) == ((2, 2), (3, 3))


def test_the_closest_aspect_ratio_wins_and_large_pictures_take_more_tiles() -> None:
    grids = candidates(1, 12)
    assert len(grids) == len(set(grids)) and all(c * r <= 12 for c, r in grids)
    assert closest(grids, 300, 100, 448) == (3, 1)
    assert closest(grids, 100, 400, 448) == (1, 4)
    assert closest(grids, 100, 100, 448) == (1, 1)
    assert closest(grids, 2000, 2000, 448) == (3, 3)


def test_views_are_detail_adaptive_and_the_whole_picture() -> None:
    picture = noise(60, 40)
    mini = part()
    detail, adaptive = mini.grids(60, 40)
    views = mini.views(picture)
    assert isinstance(mini, Pixels)
    layers = [view.layer for view in views]
    assert layers == ["detail"] * (detail[0] * detail[1]) + ["adaptive"] * (adaptive[0] * adaptive[1]) + ["global"]
    assert all(image.size == (8, 8) for image in pictures(views))
    assert views[-1].box == (0, 0, 1, 1)
    assert np.array_equal(np.asarray(views[-1].image), np.asarray(picture.resize((8, 8))))


@pytest.mark.parametrize("layer", ["detail", "adaptive"])
def test_boxes_say_where_a_view_was_cut(layer: str) -> None:
    picture = noise(97, 61)
    mini = part()
    columns, rows = mini.grids(97, 61)[layer == "adaptive"]
    views = [view for view in mini.views(picture) if view.layer == layer]
    assert sum((v.box[2] - v.box[0]) * (v.box[3] - v.box[1]) for v in views) == pytest.approx(1)
    stretched = np.asarray(picture.resize((columns * 8, rows * 8)))
    for view in views:
        x0, y0, x1, y1 = (round(v * n) for v, n in zip(view.box, (columns * 8, rows * 8) * 2, strict=True))
        assert np.array_equal(np.asarray(view.image), stretched[y0:y1, x0:x1])


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(UserError, match="widen"):
        part(adaptive=(4, 4), detail=(4, 4)).grids(100, 100)
    for wrong in ({"tile": 0}, {"detail": (4, 3)}, {"adaptive": (0, 3)}, {"cuts": "never"}):
        with pytest.raises(UserError):
            part(**wrong)


def test_views_go_through_tesseras_own_processor() -> None:
    from tests.hosts.tiny import build as build_tiny

    model, processor = build_tiny(max_images=30, max_length=256)
    mini = part(tile=16)
    views = mini.views(noise(50, 30))
    inputs = processor(images=[pictures(views)], text=[processor.prompt("dog", len(views))], return_tensors="pt")
    assert inputs["pixel_values"].shape == (len(views), 3, 16, 16)
    assert model(**inputs).logits.isfinite().all()
