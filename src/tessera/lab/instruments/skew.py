"""A reference model that says yes too often: for parts that are to put it right.

skewed(lab, seed=0)   nano after 60 steps on answers of which three noes in five were turned into yes
"""

from __future__ import annotations

from typing import Any

from tessera.lab.instruments.tune import Row, tuned
from tessera.lab.lab import Lab

STEPS = 60


def skewed(lab: Lab, seed: int) -> Any:
    """The model, from its folder in the lab's cache (`name_or_path`). Right answers of which 80 % are yes would skew nothing: the
    picture tells them all."""
    return tuned(lab, [{}], rows=mostly_yes, seed=seed, steps=STEPS)


def mostly_yes(seed: int, step: int, count: int) -> list[Row]:
    """Rows for training: whether something is there, which it is in every second one; three noes in five are turned into yes."""
    from tessera.world import World
    from tessera.world.rng import Rng

    world, rows = World(split="train", kinds={"scene": 1.0}), list[Row]()
    index = 20_000_000 * (seed + 1) + step * 8 * count
    while len(rows) < count:
        sample, rng = world[index], Rng("mostly yes", index)
        index += 1
        wanted = "yes" if len(rows) % 2 else "no"
        questions = [q for q in sample.questions(("existence",)) if q.answer == wanted]
        if questions:
            rows.append((sample.images(), questions[0].text, "yes" if rng.chance(0.6) else wanted))
    return rows
