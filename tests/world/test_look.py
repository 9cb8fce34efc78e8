"""The contact sheet shows every sample with its ground truth; the command prints the questions."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tessera.cli import main
from tessera.world import World
from tessera.world.look import PALETTE, BoxDrawing, contact_sheet, enlarged, pictures


@pytest.mark.parametrize(
    ("size", "shown"), [((112, 112), 336), ((64, 64), 320), ((224, 224), 448), ((512, 512), 512), ((1024, 1024), 512)]
)
def test_small_pictures_grow_by_whole_factors_and_large_ones_shrink(size: tuple[int, int], shown: int) -> None:
    image = Image.effect_noise(size, 60).convert("RGB")
    found = enlarged(image)
    assert found.size == (shown, shown)
    if shown >= size[0]:
        back = np.asarray(found)[:: shown // size[0], :: shown // size[0]]
        assert np.array_equal(back, np.asarray(image))


def test_a_picture_keeps_its_shape() -> None:
    assert enlarged(Image.new("RGB", (200, 100))).size == (600, 300)


def test_plain_pictures_are_the_frames_and_truth_is_drawn_over_them() -> None:
    sample = World(split="test").sample(1, "clip")
    plain, drawn = pictures(sample, truth=False), pictures(sample)
    assert len(plain) == len(drawn) == len(sample.frames)
    for image, frame in zip(plain, sample.images(), strict=True):
        assert image.tobytes() == enlarged(frame).tobytes()
    assert all(a.tobytes() != b.tobytes() for a, b in zip(plain, drawn, strict=True))


@pytest.mark.parametrize("size", [112, 256])
def test_every_box_is_drawn_where_the_truth_says(size: int) -> None:
    sample = World(split="test", width=size, height=size).sample(3, "scene")
    image = np.asarray(pictures(sample)[0])
    height, width, _ = image.shape
    for found in sample.truth():
        if found.visible < 1:
            continue
        x, y = round(found.box[2] * width) - 1, round((found.box[1] + found.box[3]) / 2 * height)
        near = image[y, max(0, x - 3) : x + 4].reshape(-1, 3)
        assert any(tuple(pixel) == PALETTE[found.key % len(PALETTE)] for pixel in near)


def test_labels_stay_inside_and_apart() -> None:
    canvas = BoxDrawing(Image.new("RGB", (300, 300)))
    for i in range(3):
        canvas.box((0.85, 0.0, 1.0, 0.1), PALETTE[i], f"{i} fire engine, purple")
    canvas.finish()
    spots = canvas._taken
    assert len(spots) == 3
    assert all(x0 >= 0 and y0 >= 0 and x1 <= 300 and y1 <= 300 for x0, y0, x1, y1 in spots)
    assert all(a[1] >= b[3] or b[1] >= a[3] for a, b in combinations(spots, 2))


@pytest.mark.parametrize("kind", ["scene", "text", "chart", "pair", "clip"])
def test_a_sheet_of_every_kind_can_be_drawn(kind: str) -> None:
    world = World(split="val", width=96, height=64, frames=(2, 9))
    sheet = contact_sheet([world.sample(i, kind) for i in range(4)])
    assert sheet.mode == "RGB"
    assert sheet.width <= 2000
    assert len(sheet.getcolors(1 << 24) or []) > 50


def test_a_long_clip_is_wrapped() -> None:
    world = World(frames=(16, 16))
    sheet = contact_sheet([world.sample(0, "clip")])
    assert sheet.height > sheet.width > 4 * 336


# The command


def test_the_command_writes_a_sheet_and_prints_questions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    args = ["world", "look", "--split", "test", "--index", "5", "--count", "2", "--size", "96", "--out", str(out)]
    assert main.run([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sheet"] == str(out)
    samples = [World(split="test", width=96, height=96)[i] for i in (5, 6)]
    assert [s["index"] for s in found["samples"]] == [5, 6]
    for shown, sample in zip(found["samples"], samples, strict=True):
        assert [(q["text"], q["answer"]) for q in shown["questions"]] == [(q.text, q.answer) for q in sample.questions()]
        assert shown["captions"] == sample.captions()
        assert all(q["query"]["op"] for q in shown["questions"])
    with Image.open(out) as image:
        assert image.format == "PNG"
    assert main.run(args) == 0
    printed = capsys.readouterr().out
    assert all(s.captions()["short"][:20] in printed for s in samples)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--split", "tset"], "unknown split 'tset'. Did you mean 'test'"),
        (["--kind", "charts"], "unknown kind of sample 'charts'"),
        (["--size", "32"], "64 to 2048 pixels"),
        (["--index", "-1"], "numbered from 0"),
    ],
)
def test_mistakes_are_sentences(args: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    assert main.run(["world", "look", "--out", str(out), *args]) == 2
    assert says in capsys.readouterr().err
    assert not out.exists()
