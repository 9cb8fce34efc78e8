"""How long a recipe will take on this machine: a little of each of its pieces is done and timed before it begins.

Timed are the reading of one file's worth of scenes, a few steps of every stage (the trainer's own, on a model that is thrown
away), and the answering of a few of the evaluation's samples, with and without their images. What is drawn for the evaluation is
drawn in full. Pieces that a machine does at one pace are multiplied up; no allowance is added.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera.config import build as from_dict
from tessera.config import to_dict

if TYPE_CHECKING:
    from tessera.evaluation.items import Item
    from tessera.recipes.recipe import Recipe

STEPS = 4
"""Steps of each stage that are timed; the first, which makes the optimiser's state, is left out."""
SAMPLES = 32
"""Samples of the evaluation that are answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """Seconds on this machine. measuring: what it took to find out."""

    reading: float
    training: float
    evaluation: float
    measuring: float

    @property
    def all(self) -> float:
        """Seconds of the whole run, with the measuring."""
        return self.reading + self.training + self.evaluation + self.measuring


def expected(recipe: Recipe) -> Expected:
    """Times the pieces of `recipe` (task "questions"). Raises what building the recipe raises."""
    from tessera.training.run import build

    begin = time.perf_counter()
    small = from_dict(type(recipe), to_dict(recipe))
    model, processor = build(small)
    reading, training = _training(small, model, processor)
    evaluation = _evaluation(small, model, processor)
    return Expected(reading=reading, training=training, evaluation=evaluation, measuring=time.perf_counter() - begin)


def _training(recipe: Recipe, model: Any, processor: Any) -> tuple[float, float]:
    """(seconds of reading the scenes, seconds of all steps)."""
    from tessera.training.pool import CHUNK
    from tessera.training.run import training_data
    from tessera.training.trainer import Trainer

    steps = [stage.steps for stage in recipe.training.stages]
    scenes = _scenes(recipe)
    for stage_data in recipe.lessons.values():
        stage_data.scenes = stage_data.scenes and CHUNK
    recipe.scenes = recipe.scenes and CHUNK
    for stage in recipe.training.stages:
        stage.steps = STEPS
    settings = replace(recipe.training, progress=False, tensorboard=False, save_every=0, compile="off")
    recipe.training = settings
    training_data(recipe, model, processor)  # the first images are slower
    begin = time.perf_counter()
    data = training_data(recipe, model, processor)
    reading = time.perf_counter() - begin
    few = _scenes(recipe)
    taken: dict[str, list[float]] = {}
    last = time.perf_counter()

    def note(event: Any) -> None:
        nonlocal last
        if event.kind == "step":
            taken.setdefault(event.values["stage"], []).append(time.perf_counter() - last)
        last = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        if Trainer(model, data, settings, Path(folder), on_event=note).run(resume=False).interrupted:
            raise KeyboardInterrupt
    pace = [statistics.mean(taken[stage.name][1:]) for stage in settings.stages]
    return reading * scenes / few if few else 0.0, sum(n * seconds for n, seconds in zip(steps, pace, strict=True))


def _scenes(recipe: Recipe) -> int:
    """Scenes that the recipe reads before its first step; stages with the same worlds share theirs."""
    stages = [recipe.lessons.get(stage.name) for stage in recipe.training.stages]
    pools: dict[str, int] = {}
    for stage_data in stages:
        scenes = recipe.scenes if stage_data is None or stage_data.scenes is None else stage_data.scenes
        worlds = (stage_data and stage_data.worlds) or recipe.worlds
        pools[str((scenes, to_dict(worlds)))] = scenes
    return sum(pools.values())


def _evaluation(recipe: Recipe, model: Any, processor: Any) -> float:
    """Seconds of drawing, answering with the images, and answering without."""
    from tessera.evaluation.harness import ask
    from tessera.evaluation.items import draw

    begin = time.perf_counter()
    items = draw(recipe.evaluation)
    seconds = 2 * (time.perf_counter() - begin)
    chosen = items[:: max(1, len(items) // SAMPLES)]
    # An untrained model does not stop by itself: it may say as much as the longest true answer.
    longest = max(_length(processor, item) for item in chosen)
    size = recipe.evaluation.batch_size
    ask(model, processor, chosen[:size], batch_size=size, max_new_tokens=1)
    for blind in (False, True):
        begin = time.perf_counter()
        ask(model, processor, chosen, blind=blind, batch_size=size, max_new_tokens=longest)
        seconds += (time.perf_counter() - begin) * len(items) / len(chosen)
    return seconds


def _length(processor: Any, item: Item) -> int:
    return max(len(processor.answer_ids(question.answer)) for question in item.questions)
