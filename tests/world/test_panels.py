"""Charts are faithful to their data: read back from the pixels and from the reported strings."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tessera.errors import UserError
from tessera.world.backgrounds import COLOURS
from tessera.world.panels import _WIDTHS as WIDTHS
from tessera.world.panels import (
    CHART_COLOURS,
    LABELS,
    PANEL_KINDS,
    TITLES,
    PanelKind,
    draw_panel,
    has_axis,
    labels_inside,
    sample_panel,
)
from tessera.world.rng import Rng
from tessera.world.scene import Box, Panel
from tessera.world.text import CHART_ALPHABET, load_font

seeds = st.integers(0, 1 << 30)
kinds = st.sampled_from(PANEL_KINDS)
Strings = list[tuple[str, Box, str]]


def sampled(seed: int, kind: PanelKind) -> Panel:
    return sample_panel(Rng("panel", seed), (kind,))


def drawn(panel: Panel, width: int, height: int | None = None) -> tuple[np.ndarray, Strings]:
    image = Image.new("RGB", (width, height or width), (10, 20, 30))
    strings = draw_panel(image, panel)
    return np.asarray(image).astype(np.int64), list(strings)


def of_role(strings: Strings, role: str) -> list[tuple[str, Box]]:
    return [(text, box) for text, box, its in strings if its == role]


def near(pixels: np.ndarray, colour: str, within: int = 30) -> np.ndarray:
    return np.abs(pixels - np.array(COLOURS[colour])).max(axis=-1) <= within


def centre(box: Box) -> tuple[float, float]:
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


# Data


@settings(max_examples=400, deadline=None)
@given(seeds, kinds)
def test_sampled_data(seed: int, kind: PanelKind) -> None:
    panel = sampled(seed, kind)
    low, high = {"bar": (3, 6), "line": (3, 6), "pie": (3, 5), "table": (3, 6), "receipt": (2, 5)}[kind]
    assert panel.kind == kind
    assert low <= len(panel.labels) <= high
    assert len(panel.labels) == len(panel.values) == len(panel.colours)
    assert len(set(panel.labels)) == len(panel.labels)
    assert set(panel.labels) <= set(LABELS)
    ordered = sorted(panel.values)
    assert len(set(ordered)) == len(ordered)
    assert 1 <= ordered[0] <= ordered[-1] <= 100
    assert ordered[1] - ordered[0] >= 5
    assert ordered[-1] - ordered[-2] >= 5
    if kind == "pie":
        assert sum(ordered) == 100
        assert all(value % 5 == 0 for value in ordered)
    distinct = len(panel.labels) if kind in ("bar", "pie") else 1
    assert len(set(panel.colours)) == distinct
    assert set(panel.colours) <= set(CHART_COLOURS)
    x0, y0, x1, y1 = panel.box
    assert 0 <= x0 < x1 <= 1
    assert 0 <= y0 < y1 <= 1
    assert (x1 - x0) * (y1 - y0) > 0.3


def test_sampling_repeats_and_varies() -> None:
    panels = [sample_panel(Rng("vary", i)) for i in range(600)]
    assert panels == [sample_panel(Rng("vary", i)) for i in range(600)]
    assert set(Counter(p.kind for p in panels)) == set(PANEL_KINDS)
    assert {bool(p.title) for p in panels} == {True, False}
    assert {p.title for p in panels} >= set(TITLES)
    charts = [p for p in panels if p.kind in ("bar", "line")]
    assert 0.15 < sum(has_axis(p) for p in charts) / len(charts) < 0.45
    pies = [p for p in panels if p.kind == "pie"]
    assert 0.1 < sum(labels_inside(p.values) for p in pies) / len(pies) < 0.6


def test_the_highest_value_is_anywhere() -> None:
    """Neither place nor colour nor label gives the answer away."""
    bars = [p for p in (sampled(i, "bar") for i in range(1500)) if len(p.labels) == 4]
    places = Counter(p.values.index(max(p.values)) for p in bars)
    assert max(places.values()) < 1.4 * len(bars) / 4


def test_labels() -> None:
    assert len(set(LABELS)) == len(LABELS) >= 120
    assert all(2 <= len(label) <= 4 and label.isalpha() and label.isupper() for label in LABELS)
    assert {char for word in (*LABELS, *TITLES) for char in word} <= set(CHART_ALPHABET)


def test_letter_widths_are_the_fonts() -> None:
    font = load_font(1000)
    assert all(abs(font.getlength(letter) / 10 - width) <= 1 for letter, width in WIDTHS.items())


def test_unknown_kinds_are_refused() -> None:
    with pytest.raises(UserError, match=r"unknown panel kind 'bars'. Did you mean 'bar'"):
        sample_panel(Rng("x"), ("bars",))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least one kind"):
        sample_panel(Rng("x"), ())


# Strings


@settings(max_examples=80, deadline=None)
@given(seeds, kinds, st.integers(64, 1024), st.floats(0.6, 1.6))
def test_every_string_is_inside_the_panel(seed: int, kind: PanelKind, width: int, aspect: float) -> None:
    panel = sampled(seed, kind)
    height = max(64, int(width * aspect))
    pixels, strings = drawn(panel, width, height)
    labels, values = list(panel.labels), [str(value) for value in panel.values]
    if kind == "receipt":
        labels, values = [*labels, "TOTAL"], [*values, str(sum(panel.values))]
    if has_axis(panel):
        values = []
        ticks = [int(text) for text, _ in of_role(strings, "axis")]
        assert ticks in (list(range(0, 101, 20)), [0, 50, 100])
    assert [text for text, _ in of_role(strings, "label")] == labels
    assert [text for text, _ in of_role(strings, "value")] == values
    assert [text for text, _ in of_role(strings, "title")] == [panel.title] * bool(panel.title)
    x0, y0, x1, y1 = panel.box
    for _, box, _ in strings:
        assert x0 - 1 / width <= box[0] < box[2] <= x1 + 1 / width
        assert y0 - 1 / height <= box[1] < box[3] <= y1 + 1 / height
    # nothing is painted outside
    outside = np.ones(pixels.shape[:2], dtype=bool)
    outside[int(y0 * height) : int(y1 * height) + 2, int(x0 * width) : int(x1 * width) + 2] = False
    assert (pixels[outside] == (10, 20, 30)).all()


@settings(max_examples=150, deadline=None)
@given(seeds, kinds, st.sampled_from((112, 128, 224, 512)))
def test_strings_are_legible_and_do_not_touch(seed: int, kind: PanelKind, size: int) -> None:
    pixels, strings = drawn(sampled(seed, kind), size)
    for text, (x0, y0, x1, y1), role in strings:
        assert round((y1 - y0) * size) >= (5 if role != "axis" else 4), (text, role)
        patch = pixels[round(y0 * size) : round(y1 * size), round(x0 * size) : round(x1 * size)]
        assert patch.max() - patch.min() > 120, text  # ink and ground
    for (a, first, _), (b, second, _) in combinations(strings, 2):
        wide = min(first[2], second[2]) - max(first[0], second[0])
        tall = min(first[3], second[3]) - max(first[1], second[1])
        assert wide * size < 0.5 or tall * size < 0.5, (a, b)


@settings(max_examples=30, deadline=None)
@given(seeds, kinds)
def test_drawing_twice_gives_the_same(seed: int, kind: PanelKind) -> None:
    panel = sampled(seed, kind)
    (first, strings), (second, again) = drawn(panel, 112), drawn(panel, 112)
    assert (first == second).all()
    assert strings == again


# Geometry


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from((96, 112, 224, 640)))
def test_bars_are_as_high_as_their_values(seed: int, size: int) -> None:
    panel = sampled(seed, "bar")
    pixels, strings = drawn(panel, size)
    heights, bottoms = [], []
    for (_, box), colour in zip(of_role(strings, "label"), panel.colours, strict=True):
        column = near(pixels, colour, 0)[: int(box[1] * size), int(centre(box)[0] * size)]
        rows = np.flatnonzero(column)
        heights.append(len(rows))
        bottoms.append(rows.max() + 1 if len(rows) else None)
        if len(rows):
            assert len(rows) == rows.max() - rows.min() + 1
    assert len({bottom for bottom in bottoms if bottom is not None}) == 1
    best = int(np.argmax(panel.values))
    for value, height in zip(panel.values, heights, strict=True):
        assert abs(height - heights[best] * value / panel.values[best]) <= 1
    if has_axis(panel):
        ticks = {int(text): centre(box)[1] * size for text, box in of_role(strings, "axis")}
        for value, height in zip(panel.values, heights, strict=True):
            assert abs(height - (ticks[0] - ticks[100]) * value / 100) <= 2


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from((224, 448)))
def test_points_stand_at_their_values(seed: int, size: int) -> None:
    panel = sampled(seed, "line")
    pixels, strings = drawn(panel, size)
    mask = near(pixels, panel.colours[0], 60)
    labels = of_role(strings, "label")
    mask[int(labels[0][1][1] * size) - 1 :] = False
    rows = []
    for _, box in labels:
        x = int(centre(box)[0] * size)
        # the marker is the widest place of the line near its column
        spans = mask[:, x - 1 : x + 2].any(axis=1)
        ys = np.flatnonzero(spans)
        widths = [mask[y, x - 5 : x + 6].sum() for y in ys]
        thick = [y for y, wide in zip(ys, widths, strict=True) if wide >= max(widths) - 1]
        rows.append(float(np.mean(thick)))
    slope, start = np.polyfit(panel.values, rows, 1)
    assert slope < 0
    worst = np.abs(np.array(rows) - (slope * np.array(panel.values) + start)).max()
    assert worst < size * 0.03


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from((112, 224, 448)))
def test_slices_have_their_angles(seed: int, size: int) -> None:
    panel = sampled(seed, "pie")
    pixels, _ = drawn(panel, size)
    if not labels_inside(panel.values):  # leave out the key's patches
        pixels = pixels[:, : int((panel.box[0] + 0.43 * (panel.box[2] - panel.box[0])) * size) - 2]
    found = np.any([near(pixels, colour, 12) for colour in panel.colours], axis=0)
    ys, xs = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    assert abs((bottom - top) - (right - left)) <= 2  # round
    radius = 0.9 * (bottom - top) / 2
    x, y = (left + right) / 2, (top + bottom) / 2
    palette = np.array([COLOURS[colour] for colour in panel.colours])
    seen: list[list[int]] = [[] for _ in panel.values]
    for i in range(400):
        turn = 2 * np.pi * (i + 0.5) / 400
        pixel = pixels[int(y - radius * np.cos(turn)), int(x + radius * np.sin(turn))]
        distances = np.abs(palette - pixel).max(axis=1)
        if distances.min() < 12:  # not the white gap between two slices
            seen[int(distances.argmin())].append(i)
    # Clockwise from the top in the order of the data, each as wide as its share.
    edges = [0.0, *((a[-1] + b[0] + 1) / 2 for a, b in pairwise(seen)), 400.0]
    assert edges == sorted(edges)
    assert all(
        places == sorted(places) and places[0] >= a and places[-1] <= b
        for places, (a, b) in zip(seen, pairwise(edges), strict=True)
    )
    for value, (start, end) in zip(panel.values, pairwise(edges), strict=True):
        assert abs((end - start) / 4 - value) < (2.5 if size < 200 else 1.2)


@settings(max_examples=40, deadline=None)
@given(seeds, st.sampled_from(("table", "receipt")), st.sampled_from((64, 112, 300)))
def test_rows_hold_label_and_value(seed: int, kind: PanelKind, size: int) -> None:
    panel = sampled(seed, kind)
    _, strings = drawn(panel, size)
    labels, values = of_role(strings, "label"), of_role(strings, "value")
    middles = [centre(box)[1] for _, box in labels]
    assert middles == sorted(middles)
    for (_, left), (_, right) in zip(labels, values, strict=True):
        assert left[2] < right[0]
        assert left[1] < centre(right)[1] < left[3]  # on one line
        assert abs(right[2] - values[0][1][2]) * size < 1.5  # flush right
        assert abs(left[0] - labels[0][1][0]) * size < 4  # flush left, but for overhangs
    if kind == "receipt":
        assert int(values[-1][0]) == sum(panel.values)
        assert values[-1][0] not in [str(value) for value in panel.values]


def test_the_key_shows_each_slices_colour() -> None:
    panel = Panel(
        kind="pie",
        labels=("TEA", "OIL", "BUS"),
        values=(5, 60, 35),
        colours=("red", "green", "blue"),
        box=(0, 0, 1, 1),
    )
    pixels, strings = drawn(panel, 224)
    for (_, box), colour in zip(of_role(strings, "label"), panel.colours, strict=True):
        row = near(pixels, colour, 0)[int(centre(box)[1] * 224)]
        assert row[int(box[0] * 224) - 14 : int(box[0] * 224)].sum() >= 5


# Mistakes


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "pies"}, "unknown panel kind 'pies'. Did you mean 'pie'"),
        ({"values": (1, 2)}, "3 labels, 2 values, 3 colours"),
        ({"colours": ("red", "bleu", "green")}, "unknown panel colour 'bleu'. Did you mean 'blue'"),
        ({"kind": "pie"}, "sum 100"),
        ({"values": (1, -2, 3)}, "not be negative"),
        ({"labels": (), "values": (), "colours": ()}, "0 labels"),
    ],
)
def test_wrong_panels_are_refused(wrong: dict[str, object], message: str) -> None:
    right: dict[str, object] = {
        "kind": "bar", "labels": ("A", "B", "C"), "values": (1, 2, 3), "colours": ("red", "blue", "green"),
        "box": (0, 0, 1, 1),
    }  # fmt: skip
    with pytest.raises(UserError, match=message):
        draw_panel(Image.new("RGB", (112, 112)), Panel(**(right | wrong)))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", PANEL_KINDS)
def test_a_tiny_panel_is_drawn_all_the_same(kind: PanelKind) -> None:
    """Illegible, but without an error, and with the strings of the large one."""
    panel = sampled(1, kind)
    large = drawn(panel, 112)[1]
    for size in (1, 2, 5, 16, 33):
        assert [text for text, _, _ in drawn(panel, size)[1]] == [text for text, _, _ in large]
