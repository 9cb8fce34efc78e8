"""What claims about dual encoders measure with: scenes, prompts, naming, finding captions, and heads trained over a kept tower.

Shapes: S samples, N tokens of an image of width D, T tokens of a text, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.errors import UserError
from tessera.models.contrast import Embedded
from tessera.models.few_shot import prompt
from tessera.world import World
from tessera.world.concepts import concepts, held_out, pool
from tessera.world.dataset import Sample

PROMPTS = (
    "A picture of {a} {name}.",
    "{A} {name} on a white background.",
    "{A} {name} on a grey background.",
    "{A} {name} on a blue background.",
    "{A} {name} on a green background.",
)
"""Ways to name a class, the plain one first; all are forms that captions have."""
_STRIDE = 1_000_000
_BATCH = 64


def concept_count(of: str = "base") -> int:
    """How many concepts a pool has."""
    return len(pool(of))


# Scenes


def single_things(world: World, n: int, seed: int = 0, wanted: Callable[[Sample], bool] = lambda sample: True) -> list[Sample]:
    """The first n scenes of one thing and no sign, from a place in the world of the seed's own, that are `wanted`."""
    alone = World(replace(world.config, kinds={"scene": 1.0}, things=(1, 1)))
    fitting = (s for s in _from(alone, seed) if len(s.frames[0].things) == 1 and not s.frames[0].signs and wanted(s))
    return [next(fitting) for _ in range(n)]


def in_held_out_colour(sample: Sample) -> bool:
    """Whether the only thing's colour and concept never came together in training."""
    thing = sample.frames[0].things[0]
    return thing.tint is not None and held_out(thing.concept, thing.tint)


def captioned(world: World, n: int, seed: int = 0) -> list[Sample]:
    """N samples of the world whose short captions all differ, from a place of the seed's own."""
    found: dict[str, Sample] = {}
    samples = _from(world, seed)
    while len(found) < n:
        sample = next(samples)
        if sample.frames[0].things:
            found.setdefault(caption(sample), sample)
    return list(found.values())


def caption(sample: Sample) -> str:
    """What a dual encoder learns to match the sample with."""
    return sample.captions()["short"]


def _from(world: World, seed: int) -> Iterator[Sample]:
    index = seed * _STRIDE
    while True:
        yield world[index]
        index += 1


def pixels(samples: Sequence[Sample], processor: Any) -> Tensor:
    """First frames as the model's inputs [S, 3, H, W]."""
    blocks = [samples[i : i + _BATCH] for i in range(0, len(samples), _BATCH)]
    return torch.cat([processor(images=[s.images()[0] for s in b], return_tensors="pt")["pixel_values"] for b in blocks])


# What a dual encoder can do


@torch.no_grad()
def embed_images(model: Any, images: Tensor) -> Embedded:
    """[S, 3, H, W] -> S unit embeddings."""
    return Embedded.cat([model.embed_images(images[i : i + _BATCH]) for i in range(0, len(images), _BATCH)])


@torch.no_grad()
def embed_texts(model: Any, processor: Any, texts: Sequence[str]) -> Embedded:
    """S texts -> S unit embeddings."""
    blocks = [list(texts[i : i + _BATCH]) for i in range(0, len(texts), _BATCH)]
    inputs = [processor(text=block, return_tensors="pt") for block in blocks]
    return Embedded.cat([model.embed_texts(i["input_ids"], i["attention_mask"]) for i in inputs])


def untrained(model: Any, seed: int = 0) -> Any:
    """The same architecture with fresh weights, in evaluation mode."""
    torch.manual_seed(seed)
    return type(model)(type(model.config).from_dict(model.config.to_dict())).eval()


@torch.no_grad()
def name_accuracy(model: Any, processor: Any, images: Tensor, samples: Sequence[Sample], prompts: Sequence[str]) -> float:
    """Share of samples whose only thing's concept has the best similarity among all base concepts."""
    known = pool("base")
    names = [concepts()[i].name for i in known]
    classes = [embed_texts(model, processor, [prompt(p, n) for n in names]) for p in prompts]
    best = model.contrast.classify(embed_images(model, images), classes).argmax(1).tolist()
    right = [known[place] == s.frames[0].things[0].concept for place, s in zip(best, samples, strict=True)]
    return sum(right) / len(right)


@torch.no_grad()
def caption_recall(model: Any, images: Embedded, texts: Embedded) -> tuple[float, float]:
    """Recall at 1 (caption of an image, image of a caption) of pairs of unit embeddings."""
    per_image, per_text = model.contrast.similarity(images, texts)
    right = torch.arange(len(images))
    return float((per_image.argmax(1) == right).float().mean()), float((per_text.argmax(1) == right).float().mean())


# Heads over a kept tower


@dataclass(slots=True)
class Pairs:
    """Samples with what a frozen image tower makes of them, and their captions.

    features [S, N, D] float16, on a raster of `grid`; input_ids, attention_mask [S, T].
    """

    samples: list[Sample]
    features: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    grid: tuple[int, int]

    def __len__(self) -> int:
        return len(self.samples)


@torch.no_grad()
def pairs(encoder: Any, samples: Sequence[Sample], processor: Any, pool: int = 1) -> Pairs:
    """Runs a frozen tower once over the samples; `pool`: side of the squares of tokens that are averaged."""
    images = pixels(samples, processor)
    features = torch.cat([_coarser(encoder(block), encoder.grid, pool).half() for block in images.split(_BATCH)])
    text = processor(text=[caption(s) for s in samples], return_tensors="pt")
    grid = (encoder.grid[0] // pool, encoder.grid[1] // pool)
    return Pairs(list(samples), features, text["input_ids"], text["attention_mask"], grid)


def _coarser(features: Tensor, grid: tuple[int, int], pool: int) -> Tensor:
    raster = features.transpose(1, 2).unflatten(2, grid)
    return F.avg_pool2d(raster, pool).flatten(2).transpose(1, 2)


def over(tower: Any, contrastive: Mapping[str, Any], seed: int, recipe_name: str = "nano_clip") -> tuple[Any, Any]:
    """A dual encoder over a trained image tower, with a recipe's text tower and a contrastive part, both fresh; its processor."""
    from tessera.recipes.recipe import recipe
    from tessera.training.run import build

    plain = recipe(recipe_name)
    encoder = {"kind": "conv_vit", "image_size": tower.image_size, "width": tower.width, "depth": 1, "heads": 1}
    torch.manual_seed(seed)
    model, processor = build(
        replace(plain, start={}, model={**plain.model, "encoder": encoder, "contrastive": dict(contrastive)})
    )
    model.encoder = tower
    return model.eval(), processor


def train_heads(model: Any, data: Pairs, *, steps: int, seed: int, lr: float = 1e-3, batch: int = _BATCH) -> Any:
    """Trains everything of a dual encoder but its image tower on kept features, by the part's own loss.

    AdamW, a tenth of the steps to warm up, then cosine to zero. Raises `UserError` for fewer pairs than a batch.
    """
    if len(data) < batch:
        raise UserError(f"{len(data)} pairs do not fill a batch of {batch}.")
    weights = [*model.pool.parameters(), *model.text.parameters(), model.logit_scale]
    optimizer = torch.optim.AdamW(weights, lr=lr, betas=(0.9, 0.98), weight_decay=0.05)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: (s + 1) / warm if s < warm else 0.5 + 0.5 * math.cos(math.pi * (s - warm) / (steps - warm)),
    )
    lots = torch.Generator().manual_seed(seed)
    order = torch.empty(0, dtype=torch.long)
    model.train()
    for _ in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(data), generator=lots)
        rows, order = order[:batch], order[batch:]
        images, texts = embed_pairs(model, data, rows)
        loss, _, _ = model.contrast.loss(images, texts, model.scale)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def embed_pairs(model: Any, data: Pairs, rows: Tensor) -> tuple[Embedded, Embedded]:
    """Unit embeddings of the images and captions of some pairs."""
    images = model.contrast.images(data.features[rows].float()).unit()
    return images, model.embed_texts(data.input_ids[rows], data.attention_mask[rows])


def paired(model: Any, data: Pairs) -> tuple[Embedded, Embedded]:
    """`embed_pairs` of all, without gradients."""
    with torch.no_grad():
        blocks = [embed_pairs(model, data, torch.arange(i, min(i + _BATCH, len(data)))) for i in range(0, len(data), _BATCH)]
    return Embedded.cat([b[0] for b in blocks]), Embedded.cat([b[1] for b in blocks])


def things_once(sample: Sample) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Name and box of every thing whose concept comes once in the first frame."""
    truth = sample.truth()
    return [(t.name, t.box) for t in truth if sum(o.concept == t.concept for o in truth) == 1]


def inside(grid: tuple[int, int], box: tuple[float, float, float, float]) -> Tensor:
    """Which patches of a raster have their centre in the box, [N] bool, reading order."""
    from tessera.nn.tokens import grid_positions

    x, y = grid_positions(*grid).unbind(1)
    return (x >= box[0]) & (x <= box[2]) & (y >= box[1]) & (y <= box[3])


def words_of(processor: Any, text: str, name: str) -> Tensor:
    """Which tokens of a text spell the name, [T] bool. Raises `UserError` if it does not stand there."""
    ids = processor(text=text, return_tensors="pt")["input_ids"][0].tolist()
    wanted = processor(text=name, return_tensors="pt")["input_ids"][0].tolist()
    for start in range(len(ids) - len(wanted) + 1):
        if ids[start : start + len(wanted)] == wanted:
            return torch.tensor([start <= i < start + len(wanted) for i in range(len(ids))])
    raise UserError(f"{name!r} does not stand in {text!r}.")


def normalised(vectors: Tensor) -> Tensor:
    """Float32, length 1."""
    return F.normalize(vectors.float(), dim=-1)
