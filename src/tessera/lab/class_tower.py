"""A small vision transformer that learns from labels of whole images, through its class token alone: nothing asks its patches
what they show. Imports torch; protocols import it inside functions.

Shapes: I images, N patches, W width, C tints.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.data.dense import IGNORED, to_pixels
from tessera.lab.protocols.base import APART
from tessera.world import World
from tessera.world.backgrounds import TINTS
from tessera.world.dataset import Sample
from tessera.world.rng import Rng

SHARE = 0.5
"""Least share of a patch that its thing fills."""


class ClassTower(nn.Module):
    """A CLIP tower as an encoder: pixels [I, 3, S, S] -> its patches [I, N, W]; `tints` reads its class token, [I, C] logits."""

    def __init__(self, side: int, patch: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel

        made: Any = CLIPVisionModel(
            CLIPVisionConfig(
                hidden_size=width, intermediate_size=3 * width, num_hidden_layers=depth, num_attention_heads=heads,
                image_size=side, patch_size=patch,
            )
        )  # fmt: skip
        self.tower: Any = getattr(made, "vision_model", made)
        self.head = nn.Linear(width, len(TINTS))
        self.image_size, self.patch_size, self.width, self.grid = side, patch, width, (side // patch, side // patch)

    def forward(self, pixels: Tensor) -> Tensor:
        patches: Tensor = self.tower(pixel_values=pixels).last_hidden_state[:, 1:]
        return patches

    def tints(self, pixels: Tensor) -> Tensor:
        found: Tensor = self.head(self.tower(pixel_values=pixels).pooler_output)
        return found


class Model(nn.Module):
    """What has an encoder, as objectives take it."""

    def __init__(self, encoder: ClassTower) -> None:
        super().__init__()
        self.encoder = encoder


def tinted_scenes(split: str, things: tuple[int, int], count: int, side: int, seed: int) -> list[Sample]:
    """Scenes without signs, from a place in the world of the seed's own, whose things all get a tint at random."""
    from dataclasses import replace

    world = World(split=split, kinds={"scene": 1.0}, things=things, width=side, height=side)
    found: list[Sample] = []
    index = APART * seed
    while len(found) < count:
        sample, chance = world[index], Rng("tinted scenes", split, index)
        index += 1
        scene = sample.frames[0]
        if not scene.signs and scene.things:
            made = tuple(replace(thing, tint=chance.choice(TINTS)) for thing in scene.things)
            found.append(Sample(sample.config, sample.index, "scene", (replace(scene, things=made),), (), sample.pool))
    return found


def labelled(samples: list[Sample], patch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels [I, 3, S, S]; which tints are in each image, float [I, C]; the tint of the thing at each patch [I, N], or -100."""
    images, whole, places = [], [], []
    for sample in samples:
        drawing = sample.drawings(owner=True)[0]
        owner = np.asarray(drawing.owner)
        side = owner.shape[0] // patch
        cells = owner.reshape(side, patch, side, patch).transpose(0, 2, 1, 3).reshape(side * side, -1)
        tints = [TINTS.index(thing.tint) for thing in sample.frames[0].things if thing.tint is not None]
        here = np.full(side * side, IGNORED, np.int64)
        for number, tint in enumerate(tints):
            here[(cells == number).mean(1) >= SHARE] = tint
        images.append(np.asarray(drawing.image))
        whole.append(F.one_hot(torch.tensor(tints), len(TINTS)).amax(0).float())
        places.append(torch.from_numpy(here))
    return to_pixels(images), torch.stack(whole), torch.stack(places)


def probed(encoder: Any, train: tuple[Tensor, Tensor, Tensor], test: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """Linear probes of frozen patches: patch, share of patches with a thing that say its tint; image, of the tints that a linear
    map of the mean patch finds in an image, as many as there are, the share that is right."""
    from tessera.lab.probe import probe_accuracy, ridge

    with torch.no_grad():
        seen, asked = (torch.cat([encoder(block) for block in pixels.split(64)]) for pixels, _, _ in (train, test))
    here, there = train[2] >= 0, test[2] >= 0
    patch = probe_accuracy(seen[here], train[2][here], asked[there], test[2][there])
    guess = ridge(seen.mean(1), train[1], asked.mean(1))
    hits = [float(wanted[g.topk(int(wanted.sum())).indices].mean()) for wanted, g in zip(test[1], guess, strict=True)]
    return {"patch": patch, "image": sum(hits) / len(hits)}
