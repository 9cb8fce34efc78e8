"""Boxes as text: cells, regions and their overlap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.world.questions.boxes import box_cells, box_iou, box_text, cell_box, iou, parse_box

cells = st.tuples(*[st.integers(0, 99)] * 4).map(lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3])))
edges = st.floats(0, 1, allow_subnormal=False)


@given(cells)
def test_cells_box_and_text_say_the_same(c: tuple[int, int, int, int]) -> None:
    assert box_cells(cell_box(c)) == c
    assert parse_box(box_text(cell_box(c))) == c
    assert iou(c, c) == 1


@given(edges, edges, edges, edges)
def test_a_box_lies_in_its_cells(a: float, b: float, c: float, d: float) -> None:
    box = (min(a, c), min(b, d), max(a, c), max(b, d))
    found = parse_box(box_text(box))
    assert found == box_cells(box)
    assert found is not None
    outer = cell_box(found)
    assert outer[0] <= box[0] + 1e-9
    assert outer[1] <= box[1] + 1e-9
    assert outer[2] >= box[2] - 1e-9
    assert outer[3] >= box[3] - 1e-9
    assert outer[2] - outer[0] <= max(0.01, box[2] - box[0] + 0.02) + 1e-9


@given(cells, cells)
def test_iou_counts_cells(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> None:
    assert iou(a, b) == iou(b, a)
    assert iou(a, b) == pytest.approx(box_iou(cell_box(a), cell_box(b)), abs=1e-9)
    small = [tuple(v // 12 for v in c) for c in (a, b)]
    sets = [{(x, y) for x in range(c[0], c[2] + 1) for y in range(c[1], c[3] + 1)} for c in small]
    assert iou(*small) == pytest.approx(len(sets[0] & sets[1]) / len(sets[0] | sets[1]))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("12 20 45 60", (12, 20, 45, 60)),
        (" 1, 2, 3, 4. ", (1, 2, 3, 4)),
        ("[00 00 99 99]", (0, 0, 99, 99)),
        ("45 20 12 60", None),
        ("12 20 45", None),
        ("12 20 45 100", None),
        ("12 20 45 60 70", None),
        ("the box 12 20 45 60", None),
        ("", None),
    ],
)
def test_parse_box(text: str, expected: tuple[int, ...] | None) -> None:
    assert parse_box(text) == expected
