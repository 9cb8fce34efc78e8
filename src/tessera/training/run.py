"""From a recipe to a trained model in a folder."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tessera.config import to_dict
from tessera.data.dense import BACKGROUND, DenseData, character_labels, object_labels, patch_accuracy
from tessera.errors import UserError, unknown
from tessera.io import write_json
from tessera.models import reference
from tessera.models.configuration import TesseraConfig, TesseraDualEncoderConfig, TesseraVisionConfig
from tessera.models.dual_encoder import TesseraDualEncoder
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.processing import TesseraDualProcessor, TesseraProcessor
from tessera.models.tokenizer import build_tokenizer
from tessera.models.vision import TesseraVisionModel
from tessera.training import checkpoint
from tessera.training.captions import CaptionData
from tessera.training.data import Batches, StagedBatches, TrainingData
from tessera.training.log import Event
from tessera.training.objective import Objective, Subject, objective_named, tuning_named
from tessera.training.pool import Pool, PooledQuestions
from tessera.training.recipe import Recipe, StageData
from tessera.training.speed import bf16_pays
from tessera.training.trainer import Trainer, TrainingResult
from tessera.training.tuning import FOLDER
from tessera.training.world_questions import WorldQuestions
from tessera.world import World
from tessera.world.vocabulary import words

MULTIPLE = 64
"""The vocabulary is padded to a multiple of this: matrix products of odd sizes are slow."""
POOLS = "pools"
"""Folder of a run for the features of scenes that are read once; deleted when the run is done."""


def run(
    recipe: Recipe, out: str | Path, *, resume: bool = True, on_event: Callable[[Event], None] | None = None
) -> tuple[TrainingResult, nn.Module, Any]:
    """Trains `recipe` in folder `out` (log, checkpoint, recipe.json) and writes the model to `out/model`.

    An interrupted run goes on where it stopped. Returns the result, the model and its processor; a stopped run writes no model.
    A tuning is taken out of the model in the end, and lies in `out/model/tuning`.
    """
    out = Path(out)
    torch.manual_seed(recipe.training.seed)
    model, processor = build(recipe)
    objective = None if recipe.objective is None else objective_named(recipe.objective)
    tuning = None if recipe.tuning is None else tuning_named(recipe.tuning)
    if objective is not None:
        objective.prepare(model, processor)
    step, precision = _sitting(out) if resume else (0, None)
    if step < recipe.training.steps:
        data = training_data(recipe, model, processor, objective, folder=out / POOLS, precision=precision)
    else:  # nothing is left to train, so nothing is read
        data = Batches(lambda indices: {}, recipe.training)
    subject = model if objective is None and tuning is None else Subject(model, objective, tuning, reference=model)
    trainer = Trainer(subject, data, recipe.training, out, on_event=on_event)
    if trainer.main:
        write_json(out / "recipe.json", to_dict(recipe))
    if recipe.task in ("objects", "characters"):
        trainer.every(250, _patch_evaluation(recipe, model))
    result = trainer.run(resume=resume)
    if tuning is not None:
        tuning.take_out()
    if trainer.main and not result.stopped:
        shutil.rmtree(out / POOLS, ignore_errors=True)
        reference.save(model, processor, out / "model", dtype=torch.float32)
        if tuning is not None:
            tuning.save(out / "model" / FOLDER)
    if trainer.accelerator.num_processes > 1:
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()  # gloo's threads must not outlive the interpreter
    return result, model, processor


def build(recipe: Recipe) -> tuple[Any, Any]:
    """The recipe's model with its starting weights, and its processor. Raises `UserError` for parts that do not fit."""
    # On a CPU the plain products are faster than the fused kernel, forward and backward.
    attention = "sdpa" if torch.accelerator.is_available() and recipe.training.device == "auto" else "eager"
    if recipe.task in ("objects", "characters"):
        labels = object_labels() if recipe.task == "objects" else character_labels()
        vision = TesseraVisionConfig(**recipe.model, num_labels=len(labels), id2label=dict(enumerate(labels)))
        tower: Any = TesseraVisionModel._from_config(vision, attn_implementation=attention)
        return _start(recipe, tower), TesseraImageProcessor(int(tower.encoder.image_size))
    tokenizer = build_tokenizer(words())
    if recipe.task == "captions":
        dual = TesseraDualEncoderConfig(**{**recipe.model, "vocab_size": _padded(len(tokenizer))})
        encoder: Any = TesseraDualEncoder._from_config(dual, attn_implementation=attention)
        processor = TesseraDualProcessor(
            TesseraImageProcessor(int(encoder.encoder.image_size)), tokenizer, dual.max_position_embeddings
        )
        return _start(recipe, encoder), processor
    ids = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in ("pad", "bos", "eos")}
    text = {**recipe.model["text_config"], "vocab_size": _padded(len(tokenizer)), **ids}
    config = TesseraConfig(**{**recipe.model, "text_config": text})
    model: Any = TesseraForConditionalGeneration._from_config(config, attn_implementation=attention)
    processor_ = TesseraProcessor(
        TesseraImageProcessor(model.image_size),
        tokenizer,
        tokens_per_image=model.tokens_per_image,
        max_length=text.get("max_position_embeddings", 1024),
    )
    return _start(recipe, model), processor_


def training_data(
    recipe: Recipe,
    model: Any,
    processor: Any,
    objective: Objective | None = None,
    *,
    folder: Path | None = None,
    precision: str | None = None,
) -> TrainingData:
    """What the recipe trains on: batches of the objective, if it makes its own, else of the task.

    Where the recipe or a stage has `scenes`, they are drawn and read by the frozen towers here, before anything is trained:
    in `precision` ("fp32", "bf16"; None: what the recipe says, and by measuring where it says "auto"), and kept in `folder`
    (None: in memory) for a run that is taken up again.
    """
    if recipe.data is not None:
        from tessera.data.readers import read
        from tessera.data.supervised import SupervisedData

        if recipe.task != "questions":
            raise UserError(f"recipe {recipe.name!r}: a dataset's path goes with task 'questions', not {recipe.task!r}.")
        config = recipe.training
        return SupervisedData(
            read(recipe.data, recipe.images), processor, config.batch_size, config.seed, accumulation=config.accumulation
        )
    stages = [stage.name for stage in recipe.training.stages]
    for name in recipe.lessons:
        if name not in stages:
            raise unknown("stage in lessons:", name, stages)

    pools: dict[str, Pool] = {}

    def pool(worlds: list[World], scenes: int) -> Pool:
        key = json.dumps([scenes, *(to_dict(world.config) for world in worlds)], sort_keys=True)
        if key not in pools:  # stages that learn from the same scenes share them
            limit = int(recipe.training.cache_gb * 1e9)
            pools[key] = Pool(worlds, model, processor, scenes, _precision(recipe, precision), folder=folder, limit=limit)
        return pools[key]

    def batches(stage: StageData | None) -> TrainingData:
        worlds = [World(w) for w in (stage and stage.worlds) or recipe.worlds]
        own = objective and objective.collate(worlds, processor, recipe.training.batch_size)
        if own:
            return Batches(own, recipe.training)
        if recipe.task == "questions":
            options = (stage and stage.questions) or recipe.questions
            questions = WorldQuestions(worlds, processor, options, recipe.training.batch_size, recipe.blind)
            scenes = recipe.scenes if stage is None or stage.scenes is None else stage.scenes
            if scenes and not recipe.blind:
                return PooledQuestions(pool(worlds, scenes), questions, recipe.training)
            return Batches(questions.collate, recipe.training)
        if recipe.task == "captions":
            return Batches(CaptionData(worlds, processor).collate, recipe.training)
        return Batches(DenseData(worlds, recipe.task, _patch(model), list(model.config.attributes)).collate, recipe.training)

    if not recipe.lessons:
        return batches(None)
    return StagedBatches([batches(recipe.lessons.get(name)) for name in stages], recipe.training)


def _start(recipe: Recipe, model: Any) -> Any:
    """The model with the weights that `recipe.start` names, socket by socket."""
    for socket, source in recipe.start.items():
        other, _ = reference.load(source)
        if socket == "*":
            model.load_state_dict(other.state_dict())
            continue
        sockets = model.sockets()
        if socket not in sockets:
            raise unknown("socket in start:", socket, sockets)
        weights = other.encoder if hasattr(other, "encoder") else other.sockets()[socket]
        try:
            sockets[socket].load_state_dict(weights.state_dict())
        except RuntimeError as error:
            raise UserError(
                f"start.{socket}: {source} does not fit the recipe's part ({str(error).splitlines()[-1].strip()})"
            ) from error
    return model


def _sitting(out: Path) -> tuple[int, str | None]:
    """(steps done, number type) of the run in `out`; (0, None) for one that is not there or cannot be read."""
    checkpoint.recover(out)
    try:
        state = json.loads((out / checkpoint.NAME / "state.json").read_text(encoding="utf-8"))
        return int(state["step"]), str(state["precision"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, None


def _precision(recipe: Recipe, known: str | None) -> str:
    if known is not None or recipe.training.precision != "auto":
        return known or recipe.training.precision
    cpu = recipe.training.device == "cpu" or not torch.accelerator.is_available()
    device = torch.device("cpu") if cpu else torch.accelerator.current_accelerator()
    assert device is not None
    return "bf16" if bf16_pays(device)[0] else "fp32"


def _patch_evaluation(recipe: Recipe, model: Any) -> Callable[[nn.Module], dict[str, float]]:
    worlds = [World(replace(recipe.worlds[-1], split="val"))]
    data = DenseData(worlds, recipe.task, _patch(model))
    batches = [data.collate(range(i * 64, i * 64 + 64)) for i in range(4)]
    quiet = object_labels().index(BACKGROUND) if recipe.task == "objects" else 0
    return lambda trained: {"patch_accuracy": patch_accuracy(trained, batches, quiet)}


def _patch(model: Any) -> int:
    return int(model.encoder.image_size // model.encoder.grid[0])


def _padded(size: int) -> int:
    return -(-size // MULTIPLE) * MULTIPLE
