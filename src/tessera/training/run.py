"""From a recipe to a trained model in a folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tessera.config import to_dict
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
from tessera.training.captions import CaptionData
from tessera.training.data import Batches, Lessons, TrainingData
from tessera.training.dense import BACKGROUND, DenseData, character_labels, object_labels, patch_accuracy
from tessera.training.log import Event
from tessera.training.objective import Objective, Subject, objective_named, tuning_named
from tessera.training.trainer import Result, Trainer
from tessera.training.tuning import FOLDER
from tessera.training.world_questions import WorldQuestions
from tessera.world import World
from tessera.world.vocabulary import words

if TYPE_CHECKING:
    from tessera.recipes.recipe import Lesson, Recipe

MULTIPLE = 64
"""The vocabulary is padded to a multiple of this: matrix products of odd sizes are slow."""


def run(
    recipe: Recipe, out: str | Path, *, resume: bool = True, on_event: Callable[[Event], None] | None = None
) -> tuple[Result, nn.Module, Any]:
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
    data = training_data(recipe, model, processor, objective)
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


def training_data(recipe: Recipe, model: Any, processor: Any, objective: Objective | None = None) -> TrainingData:
    """What the recipe trains on: batches of the objective, if it makes its own, else of the task."""
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

    def batches(lesson: Lesson | None) -> TrainingData:
        worlds = [World(w) for w in (lesson and lesson.worlds) or recipe.worlds]
        own = objective and objective.collate(worlds, processor, recipe.training.batch_size)
        if own:
            return Batches(own, recipe.training)
        if recipe.task == "questions":
            options = (lesson and lesson.questions) or recipe.questions
            questions = WorldQuestions(worlds, processor, options, recipe.training.batch_size, recipe.blind)
            return Batches(questions.collate, recipe.training)
        if recipe.task == "captions":
            return Batches(CaptionData(worlds, processor).collate, recipe.training)
        return Batches(DenseData(worlds, recipe.task, _patch(model), list(model.config.attributes)).collate, recipe.training)

    if not recipe.lessons:
        return batches(None)
    return Lessons([batches(recipe.lessons.get(name)) for name in stages], recipe.training)


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
