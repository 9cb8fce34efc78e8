"""Recipes: found by exact name or from a file, complete, and runnable at a tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tessera.config import build, set_path, to_dict
from tessera.errors import UserError
from tessera.models import reference
from tessera.recipes.recipe import Recipe, names, recipe
from tessera.training.run import run

TINY_ENCODER = {"kind": "conv_vit", "image_size": 64, "patch_size": 8, "width": 16, "depth": 1, "heads": 1}


def tiny(name: str) -> Recipe:
    """A built-in recipe shrunk to two steps of a few thousand parameters."""
    found = recipe(name)
    found.start = {}
    stage_worlds = [world for stage_data in found.lessons.values() for world in stage_data.worlds or []]
    for world in found.worlds + stage_worlds:
        world.width = world.height = 64
    found.scenes = min(found.scenes, 8)
    for stage_data in found.lessons.values():
        stage_data.scenes = stage_data.scenes and 8
    if found.task == "questions":
        found.model["parts"]["encoders"] = [TINY_ENCODER]
        found.model["parts"]["experts"] = {"kind": "single"}
        found.model["text_config"] |= {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        found.model["text_config"] |= {"num_attention_heads": 2, "num_key_value_heads": 2}
    else:
        found.model["encoder"] = TINY_ENCODER
    for stage in found.training.stages:
        stage.steps, stage.train = 2, {"*": 1.0}
    found.training.batch_size = 4
    found.training.progress = False
    found.training.precision = "fp32"
    found.training.compile = "off"
    return found


@pytest.mark.parametrize("name", names())
def test_recipes_survive_json(name: str) -> None:
    found = recipe(name)
    assert found.name == name and found.about
    again = build(Recipe, json.loads(json.dumps(to_dict(found))))
    assert to_dict(again) == to_dict(found)
    found.training.check()
    found.evaluation.check()
    for world in found.worlds:
        world.check()
    for stage, stage_data in found.lessons.items():
        assert stage in [s.name for s in found.training.stages]
        for world in stage_data.worlds or []:
            world.check()


@pytest.mark.parametrize("name", names())
def test_recipes_train_and_leave_a_model(name: str, tmp_path: Path) -> None:
    result, model, _ = run(tiny(name), tmp_path / "run")
    assert result.step == 2 * len(recipe(name).training.stages) and not result.stopped and result.skipped == 0
    assert json.loads((tmp_path / "run/recipe.json").read_text())["name"] == name
    loaded, processor = reference.load(tmp_path / "run/model")
    assert processor is not None
    for key, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key]), key
    again, _, _ = run(tiny(name), tmp_path / "run")
    assert again.step == result.step, "a finished run is not trained again"


def test_nothing_of_training_is_held_out_for_the_test() -> None:
    for name in names():
        found = recipe(name)
        assert all(w.split == "train" and w.pool == "base" and w.combinations == "seen" for w in found.worlds)
        assert found.evaluation.world.split == "test"


def test_starting_weights_come_from_the_named_models(tmp_path: Path) -> None:
    first = tiny("quickstart")
    run(first, tmp_path / "first")
    second = tiny("quickstart")
    second.start = {"encoders.0": str(tmp_path / "first/model")}
    for stage in second.training.stages:
        stage.train = {"*": 1.0, "encoders.*": 0.0}
    _, model, _ = run(second, tmp_path / "second")
    source, _ = reference.load(tmp_path / "first/model")
    for key, value in source.sockets()["encoders.0"].state_dict().items():
        assert torch.equal(model.sockets()["encoders.0"].state_dict()[key], value)


def test_wrong_starts_are_refused(tmp_path: Path) -> None:
    run(tiny("quickstart"), tmp_path / "first")
    other = tiny("quickstart")
    other.start = {"encodrs.0": str(tmp_path / "first/model")}
    with pytest.raises(UserError, match=r"encoders\.0"):
        run(other, tmp_path / "second")
    other.start = {"encoders.0": str(tmp_path / "first/model")}
    other.model["parts"]["encoders"] = [{**TINY_ENCODER, "width": 32}]
    with pytest.raises(UserError, match="does not fit"):
        run(other, tmp_path / "second")


def test_unknown_recipes_name_the_nearest() -> None:
    with pytest.raises(UserError, match="quickstart"):
        recipe("quikstart")


def test_recipes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from tessera.recipes.quickstart import quickstart\n"
        "def longer():\n    found = quickstart()\n    found.training.stages[0].steps = 7\n    return found\n"
        "def nothing():\n    return 3\n"
    )
    assert recipe(f"{file}:longer").training.stages[0].steps == 7
    with pytest.raises(UserError, match="longer"):
        recipe(f"{file}:longr")
    with pytest.raises(UserError, match="int"):
        recipe(f"{file}:nothing")
    with pytest.raises(UserError, match="no recipe file"):
        recipe(f"{tmp_path}/none.py:x")


def test_set_reaches_existing_fields_only() -> None:
    found = recipe("quickstart")
    set_path(found, "training.stages.0.steps=7")
    set_path(found, "model.text_config.num_hidden_layers=2")
    set_path(found, "worlds.0.width=96")
    assert found.training.stages[0].steps == 7 and found.worlds[0].width == 96
    assert found.model["text_config"]["num_hidden_layers"] == 2
    for wrong, hint in (
        ("training.stepz=1", "steps|stages"),
        ("training.batch_size=many", "whole number"),
        ("worlds.0.widht=3", "width"),
        ("nonsense", "path=value"),
    ):
        with pytest.raises(UserError, match=hint):
            set_path(found, wrong)
