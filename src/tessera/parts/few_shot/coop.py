"""CoOp learns the words around a class's name as vectors.

Source: Zhou et al., "Learning to Prompt for Vision-Language Models", 2021, arXiv:2109.01134. The prompt of class c is M vectors
in the place of words, the name's own tokens, and a full stop; the frozen text tower reads it, and what it gives is the class's
weight. The cross-entropy of a few labelled images reaches the vectors alone, shared by all classes or one set for each.

Deviations: as the image tower is frozen, features of `views` augmented copies of every image are computed once, and each epoch
draws one copy of each. Rate and starting spread are the paper's for token embeddings of standard deviation 0.02 and follow the
model's own (`scaled=False`: the paper's numbers).

Shapes: I images, C classes, M vectors, T tokens of a prompt, W channels of the text tower, E of the shared space.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.config import config
from tessera.errors import UserError
from tessera.models.few_shot import Classifier, FewShot, FrozenDual, Shots, padded, views
from tessera.registry import part

TINY = {"context": 2, "epochs": 2, "views": 1}
Place = Literal["end", "middle", "front"]
_SPREAD = 0.02
_FILLER = "X"


class Prompts(nn.Module):
    """Prompts with learned context: `vectors` [M, W], or [C, M, W] with a context of its own for every class."""

    embeds: Tensor

    def __init__(self, dual: FrozenDual, names: Sequence[str], config: CoOp.Config, seed: int) -> None:
        super().__init__()
        self.dual = dual
        context = config.init or " ".join([_FILLER] * config.context)
        count = len(dual.ids(context, special=False))
        parsed = [self._parse(dual, context, name) for name in names]
        self.ids, self.there = padded([ids for ids, _, _ in parsed])
        self.register_buffer("embeds", dual.embed(self.ids), persistent=False)
        # Which of [M vectors, T token embeddings] stands at each place of each prompt.
        order, kept = padded([self._order(at, length, len(ids), count, config.place) for ids, at, length in parsed])
        self.order = torch.where(kept, order, count + torch.arange(order.shape[1]))
        self.spoken = torch.gather(F.pad(self.ids, (count, 0)), 1, self.order)
        generator = torch.Generator().manual_seed(seed)
        shape = (len(names), count, dual.width) if config.per_class else (count, dual.width)
        if config.init:
            at = parsed[0][1]
            start = self.embeds[0, at : at + count].expand(shape).clone()
        else:
            start = torch.randn(shape, generator=generator) * (dual.spread if config.scaled else _SPREAD)
        self.vectors = nn.Parameter(start)

    @staticmethod
    def _parse(dual: FrozenDual, context: str, name: str) -> tuple[list[int], int, int]:
        """Token ids of "context name.", where the context begins in them, and how many tokens the name has."""
        ids, words, own = dual.ids(f"{context} {name}."), dual.ids(context, special=False), dual.ids(name, special=False)
        wanted = words + own
        for at in range(len(ids) - len(wanted) + 1):
            if ids[at : at + len(wanted)] == wanted:
                return ids, at, len(own)
        raise UserError(f"the tokens of {context!r} and of {name!r} do not stand apart in {f'{context} {name}.'!r}.")

    @staticmethod
    def _order(at: int, name: int, length: int, count: int, place: Place) -> list[int]:
        """Places in [count vectors, tokens]: what begins the text, vectors and name in their order, what ends it."""
        half = {"end": count, "middle": count // 2, "front": 0}[place]
        first = at + count
        own = range(count + first, count + first + name)
        return [*range(count, count + at), *range(half), *own, *range(half, count), *range(count + first + name, count + length)]

    def forward(self) -> Tensor:
        """The classes' weights [C, E], of length 1."""
        classes = len(self.ids)
        own = self.vectors if self.vectors.ndim == 3 else self.vectors.expand(classes, -1, -1)
        table = torch.cat([own, self.embeds], dim=1)
        placed = table.gather(1, self.order[..., None].expand(-1, -1, table.shape[2]))
        return self.dual.encode(placed, self.spoken, self.there)


@part("coop", socket="few_shot", catalog=168)
class CoOp(FewShot):
    """Trains the context of the prompts by gradient descent through the frozen text tower."""

    @config
    class Config:
        """context: M, learned vectors; init: words that they start from instead of at random (M is then their number of tokens).
        place: where the name stands among them; per_class: vectors of its own for every class.
        epochs: passes over the images (None: 50 for one of each class, 100 up to four, else 200, as in the paper).
        lr, batch, momentum, weight_decay: of SGD, cosine schedule after an epoch at `warm_lr`.
        views: augmented copies of an image, 0 for the image as it is; scaled: rate and spread follow the model's embeddings."""

        context: int = 16
        init: str = ""
        place: Place = "end"
        per_class: bool = False
        epochs: int | None = None
        lr: float = 0.002
        warm_lr: float = 1e-5
        batch: int = 32
        momentum: float = 0.9
        weight_decay: float = 5e-4
        views: int = 10
        scaled: bool = True

        def validate_sizes(self) -> None:
            if self.context < 1 or self.batch < 1 or self.views < 0 or (self.epochs is not None and self.epochs < 0):
                raise ValueError("context and batch must be at least 1, epochs and views at least 0.")
            if self.lr < 0 or self.warm_lr < 0 or not 0 <= self.momentum < 1 or self.weight_decay < 0:
                raise ValueError("lr, warm_lr and weight_decay must not be negative, momentum 0 or more and below 1.")

    config: CoOp.Config

    def fit(
        self, dual: FrozenDual, names: Sequence[str], shots: Shots, validation: Shots | None = None, *, seed: int = 0
    ) -> Classifier:
        """The classifier after the last epoch; `validation` is not used."""
        shots.check(len(names))
        return self.fit_features(dual, names, views(dual, shots, self.config.views, seed), shots.labels, seed=seed)

    def fit_features(
        self, dual: FrozenDual, names: Sequence[str], features: Tensor, labels: Tensor, *, seed: int = 0
    ) -> Classifier:
        """`fit` on features [V, I, E] of V copies of the images, made before."""
        c, prompts = self.config, Prompts(dual, names, self.config, seed)
        unit = (dual.spread / _SPREAD) ** 2 if c.scaled else 1.0
        sgd = torch.optim.SGD(prompts.parameters(), lr=c.lr, momentum=c.momentum, weight_decay=c.weight_decay)
        generator = torch.Generator().manual_seed(seed)
        epochs = self._epochs(len(labels), len(names))
        for epoch in range(epochs):
            rate = c.warm_lr if epoch == 0 else c.lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
            sgd.param_groups[0]["lr"] = rate * unit
            copy = torch.randint(len(features), (len(labels),), generator=generator)
            for rows in torch.randperm(len(labels), generator=generator).split(c.batch):
                logits = dual.scale * features[copy[rows], rows] @ prompts().t()
                sgd.zero_grad()
                F.cross_entropy(logits, labels[rows]).backward()
                sgd.step()
        with torch.no_grad():
            weights = prompts()
        return Classifier(dual, names, lambda found: dual.scale * found @ weights.t())

    def _epochs(self, images: int, classes: int) -> int:
        if self.config.epochs is not None:
            return self.config.epochs
        shots = images / classes
        return 50 if shots <= 1 else 100 if shots <= 4 else 200
