"""Captioned scenes that are made of a few chosen concepts. Imports the world inside functions only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from tessera.lab.protocols.base import APART

if TYPE_CHECKING:
    from tessera.world.dataset import Sample


def scenes(
    split: str, things: tuple[int, int], chosen: Sequence[int], side: int, seed: int, *, turn: bool = False
) -> Iterator[Sample]:
    """Scenes without signs, from a place in the world of the seed's own. Their things are replaced by chosen concepts, at random
    or in `turn`; a tint that training holds out for the concept is taken off."""
    from dataclasses import replace
    from itertools import count, cycle

    from tessera.world import World
    from tessera.world.concepts import held_out
    from tessera.world.dataset import Sample
    from tessera.world.rng import Rng

    world = World(split=split, kinds={"scene": 1.0}, things=things, width=side, height=side)
    in_turn = cycle(chosen)
    for index in count(APART * seed):
        sample = world[index]
        scene, chance = sample.frames[0], Rng("captioned", split, index)
        if scene.signs or not things[0] <= len(scene.things) <= things[1]:
            continue
        made = []
        for thing in scene.things:
            concept = next(in_turn) if turn else chance.choice(chosen)
            tint = None if thing.tint is not None and held_out(concept, thing.tint) else thing.tint
            made.append(replace(thing, concept=concept, tint=tint))
        yield Sample(sample.config, sample.index, "scene", (replace(scene, things=tuple(made)),), (), sample.pool)


def different(samples: Iterable[Sample], count: int) -> list[Sample]:
    """The first `count` whose captions all differ."""
    found: dict[str, Sample] = {}
    for sample in samples:
        found.setdefault(caption(sample), sample)
        if len(found) == count:
            break
    return list(found.values())


def caption(sample: Sample) -> str:
    """What a dual encoder learns to match the sample with: its things, and half of the time its background."""
    return sample.captions()["short"]
