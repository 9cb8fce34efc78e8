"""A pool of scenes: read once, bit-equal to what the towers say, asked about anew on every visit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.training.small import made, small

from tessera.errors import UserError
from tessera.recipes.recipe import Recipe
from tessera.training import pool as pools
from tessera.training import run as runs
from tessera.training.options import Questions
from tessera.training.plan import Stage, TrainConfig
from tessera.training.pool import Pool, PooledQuestions
from tessera.training.run import build, run
from tessera.training.world_questions import WorldQuestions
from tessera.world import World, WorldConfig

WORLDS = [World(WorldConfig(width=64, height=64)), World(WorldConfig(width=64, height=64, things=(1, 3)))]
ALONE = Questions(several=(0.0, 0.0), captions=(0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def made_once() -> tuple[Any, Any]:
    model, processor = made(small("quickstart"))
    return model.eval(), processor


def questions(processor: Any, worlds: list[World], options: Questions = ALONE) -> WorldQuestions:
    return WorldQuestions(worlds, processor, options, 4)


def config(batch_size: int = 4) -> TrainConfig:
    return TrainConfig(stages=[Stage(steps=9)], batch_size=batch_size)


def test_a_batch_has_the_features_that_the_pictures_have(made_once: tuple[Any, Any]) -> None:
    model, processor = made_once
    pool = Pool(WORLDS, model, processor, 8)
    batch = PooledQuestions(pool, questions(processor, WORLDS), config()).batch(0, 0, 1, 0)
    assert "pixel_values" not in batch
    with torch.no_grad():
        pooled = model(**batch)
        for place, features in enumerate(pool.features(range(8))):
            image = torch.from_numpy(_pixels(pool.samples[place]))
            torch.testing.assert_close(model.encode_images(image).features[0], features, rtol=2e-3, atol=2e-3)
    assert torch.isfinite(pooled.loss)


def _pixels(sample: Any) -> Any:
    import numpy as np

    from tessera.data.dense import to_pixels

    return np.asarray(to_pixels([np.asarray(sample.images()[0])]))


def test_every_epoch_visits_every_scene_and_asks_something_else(made_once: tuple[Any, Any]) -> None:
    model, processor = made_once
    pool = Pool(WORLDS, model, processor, 8)
    data = PooledQuestions(pool, questions(processor, WORLDS), config())
    epochs = []
    for epoch in range(2):
        batches = [data.batch(2 * epoch + half, 0, 1, 0) for half in range(2)]
        seen = torch.cat([batch["visual_features"] for batch in batches])
        order = [next(i for i in range(8) if torch.equal(pool.features([i])[0], row)) for row in seen]
        assert sorted(order) == list(range(8))
        texts = [row.tolist() for batch in batches for row in batch["input_ids"]]
        epochs.append(dict(zip(order, texts, strict=True)))
    assert list(epochs[0]) != list(epochs[1])
    assert all(epochs[0][place] != epochs[1][place] for place in range(8))


def test_visits_ask_about_the_same_truth() -> None:
    sample = WORLDS[0].sample(2, "scene")
    again = sample.visit(1)
    assert again.truth() == sample.truth() and again.frames == sample.frames
    assert [q.text for q in again.questions()] != [q.text for q in sample.questions()]
    assert [q.text for q in sample.visit(0).questions()] == [q.text for q in sample.questions()]


def test_a_world_named_twice_gives_other_scenes(made_once: tuple[Any, Any]) -> None:
    model, processor = made_once
    pool = Pool([WORLDS[0], WORLDS[0], WORLDS[1]], model, processor, 9)
    assert len({tuple(row.flatten().tolist()) for row in pool.features(range(9))}) == 9


def test_a_batch_is_a_function_of_the_step(made_once: tuple[Any, Any]) -> None:
    model, processor = made_once
    pool = Pool(WORLDS, model, processor, 8)
    data = PooledQuestions(pool, questions(processor, WORLDS), config())
    first = data.batch(3, 0, 1, 0)
    data.batch(0, 0, 1, 0)
    for key, value in data.batch(3, 0, 1, 0).items():
        assert torch.equal(value, first[key]), key
    halves = [data.batch(3, rank, 2, 0)["visual_features"] for rank in range(2)]
    assert torch.equal(torch.cat(halves), first["visual_features"])


def test_stored_features_are_read_again_bit_for_bit(made_once: tuple[Any, Any], tmp_path: Path, monkeypatch: Any) -> None:
    model, processor = made_once
    monkeypatch.setattr(pools, "CHUNK", 3)
    first = Pool(WORLDS, model, processor, 7, folder=tmp_path)

    def fail(*_: Any) -> Any:
        raise AssertionError("an image was read again")

    monkeypatch.setattr(model, "encode_images", fail)
    second = Pool(WORLDS, model, processor, 7, folder=tmp_path)
    assert torch.equal(first.features(range(7)), second.features(range(7)))
    with pytest.raises(AssertionError):
        Pool(WORLDS, model, processor, 7, precision="bf16", folder=tmp_path)
    with pytest.raises(AssertionError):
        Pool(WORLDS[:1], model, processor, 7, folder=tmp_path)


def test_without_room_on_the_disk_features_stay_in_memory(made_once: tuple[Any, Any], tmp_path: Path) -> None:
    model, processor = made_once
    pool = Pool(WORLDS, model, processor, 4, folder=tmp_path, limit=1)
    assert not list(tmp_path.rglob("*.safetensors"))
    assert torch.equal(pool.features(range(4)), Pool(WORLDS, model, processor, 4).features(range(4)))


def test_what_a_pool_cannot_hold_is_refused(made_once: tuple[Any, Any]) -> None:
    model, processor = made_once
    with pytest.raises(UserError, match="one scene"):
        Pool(WORLDS, model, processor, 0)
    with pytest.raises(UserError, match=r"several=\(0,0\)"):
        PooledQuestions(Pool(WORLDS, model, processor, 1), questions(processor, WORLDS, Questions()), config())


def pooled(**changes: Any) -> Recipe:
    found = small("quickstart", steps=4, questions=ALONE)
    found.scenes = 8
    found.training.save_every = 2
    for key, value in changes.items():
        setattr(found, key, value)
    return found


def test_a_recipe_with_scenes_trains_and_clears_up(tmp_path: Path) -> None:
    result, model, _ = run(pooled(), tmp_path)
    assert result.step == 4 and not (tmp_path / runs.POOLS).exists()
    _again, other, _ = run(pooled(), tmp_path / "again")
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_a_finished_run_reads_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    run(pooled(), tmp_path)

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("scenes were read")

    monkeypatch.setattr(runs, "Pool", fail)
    result, _, _ = run(pooled(), tmp_path)
    assert result.step == 4


def test_stages_with_the_same_worlds_share_their_scenes(monkeypatch: Any) -> None:
    from tessera.recipes.recipe import StageData

    found = pooled(lessons={"b": StageData(questions=ALONE), "c": StageData(scenes=5)})
    found.training.stages = [Stage(name=name, steps=1, train={"*": 1.0, "encoders.*": 0.0}) for name in "abc"]
    model, processor = build(found)
    read: list[int] = []
    kept = Pool.__init__

    def count(self: Pool, worlds: Any, model: Any, processor: Any, scenes: int, *rest: Any, **more: Any) -> None:
        read.append(scenes)
        kept(self, worlds, model, processor, scenes, *rest, **more)

    monkeypatch.setattr(Pool, "__init__", count)
    runs.training_data(found, model, processor)
    assert read == [8, 5]
