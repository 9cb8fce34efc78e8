"""Scenes with their questions and the features of frozen towers: training and test data of short trainings.

    pool = scenes(model, processor, 800, split="train", types=("category",), things=(1, 3), most=6)
    model(**batch(pool, processor, pool.asked[:8], alone=False)).loss

Legend: I images, N visual tokens in front of the connector, D channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from tessera.data.packing import IGNORED
from tessera.errors import TesseraError
from tessera.lab.protocols.base import APART
from tessera.lab.rows import features_of, packed, pixels_of, right_answers

if TYPE_CHECKING:
    from torch import Tensor

Asked: TypeAlias = "tuple[int, list[int]]"
"""(image, numbers of its questions)."""
CHUNK = 32
"""Rows that are tested at once."""


@dataclass(slots=True)
class Scenes:
    """seen: what `encode_images` gives, float32 [I, N, D], or pixels [I, 3, S, S] where the coupling reads them; questions: ids
    of question and answer; asked: the questions of every image that has some; memory: of `remembered`."""

    seen: Tensor
    key: str
    questions: list[tuple[list[int], list[int]]]
    asked: list[Asked]
    memory: dict[Any, Tensor] = field(default_factory=dict)


def scenes(
    model: Any,
    processor: Any,
    count: int,
    *,
    split: str,
    types: Sequence[str],
    things: tuple[int, int],
    most: int,
    seed: int = 0,
) -> Scenes:
    """`count` scenes of a split, a seed's own, with at most `most` questions of `types` each.

    Raises `TesseraError` if nothing can be asked.
    """
    import torch

    from tessera.world import World

    side = int(model.image_size)
    world = World(split=split, kinds={"scene": 1.0}, things=things)
    made = Scenes(torch.empty(0), key_of(model), [], [])
    pictures: list[Any] = []
    for index in range(count):
        sample = world[APART * seed + index]
        pictures.append(sample.drawings(size=(side, side))[0].image)
        own = sample.rng("short training").shuffled(sample.questions(tuple(types)))[:most]
        if own:
            made.asked.append((index, list(range(len(made.questions), len(made.questions) + len(own)))))
            made.questions += [(list(processor.question_ids(q.text)), list(processor.answer_ids(q.answer))) for q in own]
    if not made.asked:
        raise TesseraError(f"the first {count} scenes give no question of the types {', '.join(types)}; take more.")
    made.seen = seen_by(model, processor, pictures)
    return made


def key_of(model: Any) -> str:
    """What a model is given of pictures: what its encoders say, or pixels where its coupling reads them."""
    return "pixel_values" if model.model.coupling.sees == "pixels" else "visual_features"


def seen_by(model: Any, processor: Any, pictures: Sequence[Any]) -> Tensor:
    """That of some pictures, see `Scenes.seen`."""
    found = pixels_of(processor, pictures)
    return found if key_of(model) == "pixel_values" else features_of(model, found)


def coarse(seen: Tensor, side: int) -> Tensor:
    """A copy of `seen` [I, N, D], of a square raster, in which all of a square of `side` x `side` say what its middle says.

    Raises `TesseraError` where such squares do not fill the raster or have no middle.
    """
    across = math.isqrt(seen.shape[1])
    if seen.ndim != 3 or across**2 != seen.shape[1] or side < 1 or side % 2 == 0 or across % side:
        raise TesseraError(f"squares of {side} with a middle do not fill a square raster: seen has the shape {[*seen.shape]}.")
    middles = seen.unflatten(1, (across, across))[:, side // 2 :: side, side // 2 :: side]
    return middles.repeat_interleave(side, 1).repeat_interleave(side, 2).flatten(1, 2)


def batch(pool: Scenes, processor: Any, asked: Sequence[Asked], *, alone: bool, image: str = "own") -> dict[str, Tensor]:
    """Inputs with labels: one row for each image with all of its questions, or, `alone`, for each question.

    image: own, mismatched (the next scene's) or none.
    """
    rows = [(i, [n]) for i, numbers in asked for n in numbers] if alone else asked
    items = [[(*pool.questions[n], None) for n in numbers] for _, numbers in rows]
    inputs = packed(processor, items, images=0 if image == "none" else 1)
    if image != "none":
        shift = 1 if image == "mismatched" else 0
        inputs[pool.key] = pool.seen[[(i + shift) % len(pool.seen) for i, _ in rows]]
    return inputs


def accuracy(model: Any, processor: Any, pool: Scenes, test: str, alone: bool) -> float:
    """Share of answers that are right in every token, the end included, under teacher forcing: what greedy decoding would say.

    test: one of `protocols.short_training.TESTS`.
    """
    import torch

    routers = _shuffled_routers(model) if test == "shuffled routers" else nullcontext()
    right = total = 0
    image = {"mismatched image": "mismatched", "no image": "none"}.get(test, "own")
    with routers, torch.no_grad():
        for begin in range(0, len(pool.asked), CHUNK):
            inputs = batch(pool, processor, pool.asked[begin : begin + CHUNK], alone=alone, image=image)
            labels = inputs.pop("labels")
            found = answers(model, inputs, labels, test == "shuffled question")
            right, total = right + sum(found), total + len(found)
    return right / total


@contextmanager
def remembered(tower: Any, memory: dict[Any, Tensor]) -> Iterator[None]:
    """A frozen tower that draws nothing reads every image once: later it is given what it gave, from `memory`."""
    import torch

    weights = hash(tuple(float(p.double().sum()) for p in tower.parameters()))
    own = tower.forward
    if any(key[0] != weights for key in memory):
        memory.clear()  # of another tower

    def forward(pixels: Tensor) -> Tensor:
        keys = [(weights, hash(image.numpy().tobytes())) for image in pixels]
        if new := [i for i, key in enumerate(keys) if key not in memory]:
            memory.update(zip([keys[i] for i in new], own(pixels[new]), strict=True))
        return torch.stack([memory[key] for key in keys])

    tower.forward = forward
    try:
        yield
    finally:
        del tower.forward


@contextmanager
def _shuffled_routers(model: Any) -> Iterator[None]:
    """Every router names, for each expert, the next one."""
    from tessera.nn.moe import MixtureOfExperts

    routers = [module.router.weight for module in model.modules() if isinstance(module, MixtureOfExperts)]
    for weight in routers:
        weight.data = weight.data.roll(1, 0)
    try:
        yield
    finally:
        for weight in routers:
            weight.data = weight.data.roll(-1, 0)


def answers(model: Any, inputs: dict[str, Tensor], labels: Tensor, shuffled: bool = False) -> list[bool]:
    """Whether each answer of a batch is right; `shuffled`: a connector that reads questions reads the one of another row."""
    segments = inputs["segment_ids"]
    asked = (labels == IGNORED) & (segments >= 0)
    inputs.pop("loss_weights")
    if model.reads_question and "visual_features" in inputs:
        ids, own = (inputs["input_ids"].roll(1, 0), asked.roll(1, 0)) if shuffled else (inputs["input_ids"], asked)
        features = model.model.project(inputs.pop("visual_features"), model.model.question(ids, own))
        inputs["image_features"] = features
    return [right for row in right_answers(model(**inputs).logits, labels, segments) for right in row]
