"""What is announced at the start is made of the recipe's own pieces, and grows with them."""

from __future__ import annotations

import pytest
from tests.training.small import small

from tessera.bench import expected as bench
from tessera.bench.expected import Expected, expected
from tessera.config import to_dict
from tessera.recipes.recipe import Recipe, StageData
from tessera.training.options import Questions
from tessera.training.plan import Stage

ALONE = Questions(several=(0.0, 0.0), captions=(0.0, 0.0, 0.0))


def tiny(steps: int = 3, scenes: int = 60) -> Recipe:
    found = small("quickstart", questions=ALONE, scenes=scenes)
    found.training.stages = [Stage(name=name, steps=steps, train={"*": 1.0, "encoders.*": 0.0}) for name in ("few", "many")]
    found.evaluation.world.width = found.evaluation.world.height = 64
    found.evaluation.n, found.evaluation.types = 8, ("existence", "position")
    return found


def test_the_whole_is_the_sum_and_the_recipe_is_left_alone() -> None:
    recipe = tiny()
    before = to_dict(recipe)
    found = expected(recipe)
    assert to_dict(recipe) == before
    assert min(found.reading, found.training, found.evaluation, found.measuring) > 0
    assert found.all == pytest.approx(found.reading + found.training + found.evaluation + found.measuring)


def test_steps_and_scenes_are_multiplied_up(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(10**6))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))  # every look at it is a second later
    monkeypatch.setattr(bench, "_evaluation", lambda *_: 7.0)
    once, thrice = expected(tiny(steps=10, scenes=100)), expected(tiny(steps=30, scenes=300))
    assert thrice.training == pytest.approx(3 * once.training)
    assert thrice.reading == pytest.approx(3 * once.reading)
    assert isinstance(once, Expected) and once.evaluation == 7.0


def test_scenes_that_stages_share_are_read_once() -> None:
    recipe = tiny(scenes=100)
    assert bench._scenes(recipe) == 100
    recipe.lessons = {"few": StageData(scenes=30)}
    assert bench._scenes(recipe) == 130
    recipe.scenes, recipe.lessons = 0, {}
    assert bench._scenes(recipe) == 0
