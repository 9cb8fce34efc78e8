"""A pool of scenes whose features frozen towers compute once, and about which many questions are asked.

The towers are the larger half of a small model's training step, and what they say of an image never changes. So a few thousand
scenes are drawn and encoded before the first step; every later visit to a scene asks other questions about it and costs the
language model alone.

    pool = Pool([World(...)], model, processor, 3000, precision="bf16")
    batch = PooledQuestions(pool, WorldQuestions(...), config).batch(step, 0, 1, 0)    # input_ids ..., visual_features
    model(**batch).loss

Legend: S scenes of a pool, B rows of a batch, n tokens per image, D channels in front of the connector.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from tessera.config import to_dict
from tessera.data.dense import to_pixels
from tessera.errors import UserError
from tessera.training.data import Batch, place_of, sample_numbers
from tessera.training.engine import autocast
from tessera.training.features import FeatureStore, cacheable, fingerprint
from tessera.training.plan import TrainConfig
from tessera.training.stages import sockets_of
from tessera.training.world_questions import WorldQuestions, single
from tessera.world import World
from tessera.world.dataset import VERSION, Sample
from tessera.world.render import Drawing

CHUNK = 48
"""Images that are drawn and encoded together, one file of the store."""
Progress = Callable[[int, int], None]
"""Called with the scenes read so far and the scenes in all."""


class Pool:
    """Samples of one image with their features, float16 [n, D] each.

    samples, drawings (where things are, without the picture itself) and `features(places)` have the same order. seconds: what
    reading them took.
    """

    def __init__(
        self,
        worlds: Sequence[World],
        model: nn.Module,
        processor: Any,
        scenes: int,
        precision: str = "fp32",
        *,
        folder: Path | None = None,
        limit: int = 2 * 10**9,
        progress: Progress | None = None,
    ) -> None:
        """Draws `scenes` samples of `worlds` in turn and reads them with what stands in front of the connector of `model`.

        precision: "fp32" or "bf16" autocast while they are read; folder: where features are kept for the next time, up to
        `limit` bytes (what exceeds them, and everything without a folder, is in memory). A pool that is made again of the same
        weights, worlds and precision reads the files, so its features are bit-equal.
        Raises `UserError` for a model whose images cannot be read before the question is known, and for less than one scene.
        """
        if scenes < 1:
            raise UserError(f"a pool needs one scene at least, not {scenes}.")
        front = cacheable(model, sockets_of(model), set())
        if not front:
            raise UserError(
                "this model reads the question to see an image, so scenes cannot be read ahead of it: set scenes=0 in the recipe."
            )
        begin = time.perf_counter()
        self.samples: list[Sample] = []
        self.drawings: list[Drawing] = []
        self._rows: list[Tensor] = []
        store = None
        if folder is not None:
            weights = fingerprint([sockets_of(model)[name] for name in front], precision)
            store = FeatureStore(folder / weights / _name(worlds), limit)
        device = next(model.parameters()).device
        encode = _encoder(model, device, precision)
        for start in range(0, scenes, CHUNK):
            places = range(start, min(start + CHUNK, scenes))
            samples = [_sample(worlds, place) for place in places]
            drawn = [sample.drawings(owner=True)[0] for sample in samples]
            keys = [str(place) for place in places]
            if store is not None and all(key in store for key in keys):
                rows = [store.row(key) for key in keys]
            else:
                pixels = to_pixels([np.asarray(drawing.image) for drawing in drawn]).to(device)
                made = encode(pixels) if store is None else store.get(keys, pixels, encode)
                kept = [store is not None and key in store for key in keys]
                rows = [store.row(k) if store and has else row for k, has, row in zip(keys, kept, made, strict=True)]
            self._rows += rows
            self.samples += samples
            self.drawings += [Drawing(_NOTHING, d.owner, d.characters, d.strings) for d in drawn]
            if progress is not None:
                progress(len(self._rows), scenes)
        self.seconds = time.perf_counter() - begin

    def __len__(self) -> int:
        return len(self.samples)

    def features(self, places: Sequence[int]) -> Tensor:
        """Features of the scenes at `places` [B, n, D], float32."""
        return torch.stack([self._rows[place] for place in places]).float()


class PooledQuestions:
    """`TrainingData` of packed rows about the scenes of a pool, with `visual_features` [B, n, D] in place of pixels.

    The scenes come in a new random order every epoch, drawn from (seed, epoch), and the questions of every epoch are others.
    """

    finite = True

    def __init__(self, pool: Pool, questions: WorldQuestions, config: TrainConfig) -> None:
        """Raises `UserError` for questions about pairs or clips: the scenes of a pool have one image each."""
        if any(questions.options.several):
            raise UserError("a pool has scenes of one image: set questions.several=(0,0), or scenes=0 in the recipe.")
        self.pool, self.questions, self.config = pool, questions, config

    def batch(self, step: int, rank: int, world_size: int, micro: int) -> Batch:
        """See `TrainingData.batch`."""
        numbers = sample_numbers(step, rank, world_size, micro, self.config)
        visits = [place_of(number, len(self.pool), self.config.seed) for number in numbers]
        samples = [self.pool.samples[place].visit(epoch) for epoch, place in visits]
        places = [place for _, place in visits]
        batch = self.questions.rows(samples, [[self.pool.drawings[place]] for place in places])
        return batch if self.questions.blind else batch | {"visual_features": self.pool.features(places)}


_NOTHING = Image.new("RGB", (1, 1))


def _sample(worlds: Sequence[World], place: int) -> Sample:
    # The place is the sample's number in its world: a world that is named twice gives other scenes the second time.
    world = worlds[place % len(worlds)]
    return world.sample(place, single(world, place))


def _encoder(model: Any, device: torch.device, precision: str) -> Callable[[Tensor], Tensor]:
    def encode(pixels: Tensor) -> Tensor:
        with torch.no_grad(), autocast(device, precision):
            features: Tensor = model.encode_images(pixels).features
        return features.to(torch.float16)

    return encode


def _name(worlds: Sequence[World]) -> str:
    """16 hexadecimal digits that differ for other worlds."""
    told = json.dumps([VERSION, *(to_dict(world.config) for world in worlds)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]
