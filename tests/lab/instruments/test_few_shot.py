"""Few-shot tasks: what is in them, and that nothing leaks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from tessera.errors import UserError
from tessera.lab.instruments import few_shot
from tessera.models.few_shot import augmented
from tessera.models.image_processing import TesseraImageProcessor
from tessera.world.concepts import concepts, pool


class Processor:
    """Keeps what it was shown."""

    def __init__(self) -> None:
        self.inner = TesseraImageProcessor(64)
        self.seen: list[Image.Image] = []

    def __call__(self, images: list[Image.Image], return_tensors: str) -> Any:
        self.seen += images
        return self.inner(images, return_tensors=return_tensors)


def make(**options: Any) -> few_shot.Task:
    plain: dict[str, Any] = {"classes": 3, "shots": 2, "validation": 1, "test": 2, "size": 64}
    return few_shot.task(Processor(), **plain | options)


def test_a_task_has_so_many_images_of_every_class() -> None:
    task = make()
    assert [concepts()[i].name for i in pool("base")].count(task.names[0]) == 1 and len(set(task.names)) == 3
    for shots, rounds in ((task.shots, 2), (task.validation, 1), (task.test, 2)):
        assert shots.labels.tolist() == [0, 1, 2] * rounds
        assert shots.pixels.shape == (3 * rounds, 3, 64, 64)
    assert torch.equal(task.few(1).pixels, task.shots.pixels[:3])
    with pytest.raises(UserError, match="2 images of every class; 3 were asked for"):
        task.few(3)


def test_it_is_the_same_for_the_same_seed_only() -> None:
    a, b, c = make(), make(), make(seed=1)
    assert a.names == b.names != c.names
    assert torch.equal(a.test.pixels, b.test.pixels)


def test_the_concept_and_the_style_are_the_ones_of_the_task() -> None:
    """Every image drawn anew from what the task should hold; the two styles differ."""
    noto, twemoji = make(validation=0), make(validation=0, styles=("twemoji", "noto"))
    assert noto.names == twemoji.names
    assert not torch.equal(noto.shots.pixels, twemoji.shots.pixels)
    novel = {concepts()[i].name for i in pool("novel")}
    assert set(make(of="novel", validation=0).names) <= novel


def test_crops_are_cut_around_the_thing() -> None:
    scenes, crops = Processor(), Processor()
    for processor, view in ((scenes, "scenes"), (crops, "crops")):
        few_shot.task(processor, view=view, classes=2, shots=2, validation=0, test=1, size=64)
    assert {image.size for image in scenes.seen} == {(64, 64)}
    assert all(max(image.size) < 64 and image.width * image.height > 36 for image in crops.seen)


def test_too_many_classes_are_refused() -> None:
    with pytest.raises(UserError, match="2 to"):
        make(classes=10_000)


def test_augmentation_keeps_the_shape_and_follows_its_generator() -> None:
    pixels = torch.rand(5, 3, 16, 16)
    a, b = (augmented(pixels, torch.Generator().manual_seed(0)) for _ in range(2))
    assert a.shape == pixels.shape and torch.equal(a, b) and not torch.allclose(a, pixels)
    assert float(a.min()) >= float(pixels.min()) - 1e-5 and float(a.max()) <= float(pixels.max()) + 1e-5
    flat = torch.full((4, 3, 8, 8), 0.5)
    torch.testing.assert_close(augmented(flat, torch.Generator().manual_seed(1)), flat)
