"""Measuring models that do not answer questions: dual encoders, and the vision experts by themselves."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tessera.config import to_dict
from tessera.errors import UserError
from tessera.evaluation import provenance
from tessera.evaluation.intervals import Interval, paired_bootstrap, wilson
from tessera.evaluation.items import EvaluationConfig
from tessera.world import World, WorldConfig
from tessera.world.concepts import concepts, pool
from tessera.world.dataset import VERSION, Sample
from tessera.world.questions.phrasing import article

GALLERY = 100
"""Images and captions among which a caption's image, or an image's caption, is sought."""

Progress = Callable[[int, int], None]


@dataclass(slots=True, kw_only=True)
class Measure:
    """One accuracy over `n` decisions with its 95 % interval and what guessing gives."""

    about: str
    n: int
    accuracy: float
    low: float
    high: float
    chance: float


@dataclass(slots=True, kw_only=True)
class ExpertResult:
    """What a dual encoder or a vision expert can do; fields as in `tessera.evaluation.result.Result`."""

    model: str
    weights: str
    parameters: int
    measures: dict[str, Measure] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    world_version: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = ""
    seconds: float = 0.0


def evaluate_expert(
    model: Any,
    processor: Any,
    config: EvaluationConfig | None = None,
    *,
    progress: Progress | None = None,
    name: str = "",
) -> ExpertResult:
    """Measures a dual encoder (names of single things, caption retrieval) or a vision expert (accuracy per patch).

    `config.n` is about the number of images. Raises `UserError` for a model of another sort, or a world without the concepts
    that a vision expert knows.
    """
    import torch

    config = config or EvaluationConfig(n=1000)
    config.check()
    begin = time.perf_counter()
    kind = getattr(model.config, "model_type", "")
    tell = progress or (lambda done, total: None)
    with torch.no_grad():
        if kind == "tessera_dual_encoder":
            measures = _dual(model, processor, config, tell)
        elif kind == "tessera_vision":
            measures = _patches(model, config, tell)
        else:
            raise UserError(f"{name or 'this model'} ({kind or type(model).__name__}) is neither a dual encoder nor an expert.")
    return ExpertResult(
        model=name or type(model).__name__,
        weights=provenance.weights_hash(model),
        parameters=provenance.parameter_count(model),
        measures=measures,
        config=to_dict(config),
        world_version=VERSION,
        versions=provenance.versions(),
        machine=provenance.machine(),
        seconds=round(time.perf_counter() - begin, 3),
    )


# Dual encoders


def _dual(model: Any, processor: Any, config: EvaluationConfig, tell: Progress) -> dict[str, Measure]:
    from tessera.models.contrast import Embedded

    known = pool(config.world.pool)
    texts = [f"A picture of {article(n)} {n}." for n in (concepts()[i].name for i in known)]
    half = max(1, config.n // 2)
    galleries = max(1, half // GALLERY)
    total = half + galleries * GALLERY
    names = Embedded.cat([_texts(model, processor, texts[i : i + 64]) for i in range(0, len(texts), 64)])
    top = {1: 0, 5: 0}
    count = 0
    for batch in _batches(_single_things(config), half, config.batch_size):
        likeness = model.contrast.similarity(_images(model, processor, batch), names)[0]
        best = likeness.topk(min(5, len(known))).indices
        for sample, row in zip(batch, best.tolist(), strict=True):
            place = row.index(at) if (at := known.index(sample.frames[0].things[0].concept)) in row else 5
            top[1] += place < 1
            top[5] += place < 5
        count += len(batch)
        tell(count, total)
    measures = {
        "name": _measure("the name of the only thing, among all concepts", top[1], count, 1 / len(known)),
        "name_top5": _measure("the name is among the five best", top[5], count, min(1.0, 5 / len(known))),
    }
    found = {"image": 0, "caption": 0}
    distinct = _distinct_captions(config)
    for _ in range(galleries):
        pictures, captions = [], []
        for batch in _batches(distinct, GALLERY, config.batch_size):
            pictures.append(_images(model, processor, batch))
            captions.append(_texts(model, processor, [s.captions()["short"] for s in batch]))
            count += len(batch)
            tell(count, total)
        for what, likeness in zip(
            ("caption", "image"), model.contrast.similarity(Embedded.cat(pictures), Embedded.cat(captions)), strict=True
        ):
            found[what] += sum(place == row for row, place in enumerate(likeness.argmax(1).tolist()))
    for what, other in (("caption", "image"), ("image", "caption")):
        about = f"the {what} of {'an' if other == 'image' else 'a'} {other}, among {GALLERY}"
        measures[f"{what}_retrieval"] = _measure(about, found[what], galleries * GALLERY, 1 / GALLERY)
    return measures


def _single_things(config: EvaluationConfig) -> Iterator[Sample]:
    world = World(replace(config.world, kinds={"scene": 1.0}, things=(1, 1)))
    return (s for s in _from(world, config.seed) if len(s.frames[0].things) == 1 and not s.frames[0].signs)


def _distinct_captions(config: EvaluationConfig) -> Iterator[Sample]:
    """Scenes of at most five things; within a gallery's length no caption comes twice."""
    world = World(replace(config.world, kinds={"scene": 1.0}, things=(1, 5)))
    recent: list[str] = []
    for sample in _from(world, config.seed):
        caption = sample.captions()["short"]
        if sample.frames[0].things and caption not in recent:
            recent = [*recent[1 - GALLERY :], caption]
            yield sample


def _from(world: World, seed: int) -> Iterator[Sample]:
    index = seed * 1_000_000
    while True:
        yield world[index]
        index += 1


def _batches(samples: Iterator[Sample], n: int, size: int) -> Iterator[list[Sample]]:
    for start in range(0, n, size):
        yield [next(samples) for _ in range(min(size, n - start))]


def _images(model: Any, processor: Any, samples: Sequence[Sample]) -> Any:
    inputs = processor(images=[s.images()[0] for s in samples], return_tensors="pt")
    return model.embed_images(inputs["pixel_values"].to(model.device))


def _texts(model: Any, processor: Any, texts: list[str]) -> Any:
    inputs = processor(text=texts, return_tensors="pt").to(model.device)
    return model.embed_texts(inputs["input_ids"], inputs["attention_mask"])


def _measure(about: str, right: int, n: int, chance: float) -> Measure:
    sure = wilson(right, n)
    return Measure(about=about, n=n, accuracy=sure.value, low=sure.low, high=sure.high, chance=chance)


# Vision experts


def _patches(model: Any, config: EvaluationConfig, tell: Progress) -> dict[str, Measure]:
    from tessera.data.dense import BACKGROUND, DenseData, character_labels, object_labels

    named = model.config.id2label if model.head is not None else {}
    labels = [named[i] for i in sorted(named)]
    if labels == object_labels():
        kind, quiet = "objects", labels.index(BACKGROUND)
        worlds = {"things": {"scene": 1.0}}
    elif labels == character_labels():
        kind, quiet = "characters", 0
        worlds = {"signs": {"text": 1.0}, "charts": {"chart": 1.0}}
    else:
        raise UserError(
            f"this expert has {len(labels)} classes; Tessera can measure those with its object classes "
            f"({len(object_labels())}) or its character classes ({len(character_labels())})."
        )
    if config.world.pool != "base":
        raise UserError(f"experts know the base concepts only, so pool {config.world.pool!r} does not apply.")
    patch = int(model.encoder.image_size) // model.grid[0]
    attributes = model.config.attributes if kind == "objects" else {}
    images = max(1, config.n // len(worlds))
    measures: dict[str, Measure] = {}
    for place, (name, kinds) in enumerate(worlds.items()):
        data = DenseData([World(_sized(config.world, kinds, int(model.encoder.image_size)))], kind, patch, list(attributes))
        told: list[list[tuple[int, int]]] = [[] for _ in range(1 + len(attributes))]
        for i in range(images):
            batch = data.collate([config.seed * 1_000_000 + i])
            output = model(pixel_values=batch["pixel_values"])
            told[0].append(_right(output.logits, batch["labels"], quiet))
            for a, logits in enumerate(output.attributes or ()):
                told[1 + a].append(_right(logits, batch["attribute_labels"][..., a]))
            tell(place * images + i + 1, images * len(worlds))
        about = [f"the class of a patch that holds {name}"] + [f"the {a} of the thing that a patch shows" for a in attributes]
        chances = [1 / len(labels), *(1 / len(values) for values in attributes.values())]
        for key, what, chance, found in zip([name, *attributes], about, chances, told, strict=True):
            measures[key] = _clustered(f"{what}, intervals over images", found, chance)
    return measures


def _right(logits: Any, labels: Any, quiet: int = -100) -> tuple[int, int]:
    """How many labelled patches, those of class `quiet` left out, are told right, and of how many."""
    counted = (labels != -100) & (labels != quiet)
    return int((logits.argmax(-1)[counted] == labels[counted]).sum()), int(counted.sum())


def _sized(world: WorldConfig, kinds: dict[str, float], side: int) -> WorldConfig:
    return replace(world, kinds=kinds, width=side, height=side)


def _clustered(about: str, found: Sequence[tuple[int, int]], chance: float) -> Measure:
    """The share over all patches; whole images are drawn anew for the interval, as their patches are alike."""
    counts = [n for _, n in found if n]
    right = [[1] * r + [0] * (n - r) for r, n in found if n]
    sure = paired_bootstrap(right, [[0] * n for n in counts]) if counts else Interval(0.0, 0.0, 1.0)
    if counts and math.isclose(sure.low, sure.high):  # a single image, or all alike: no spread to draw from
        sure = wilson(round(sure.value * sum(counts)), sum(counts))
    return Measure(about=about, n=sum(counts), accuracy=sure.value, low=sure.low, high=sure.high, chance=chance)
