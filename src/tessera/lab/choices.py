"""Questions of choices: those that a benchmark (MMStar) takes from the world, and planted ones that need no picture.

Imports the world inside functions only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tessera import registry
from tessera.lab.claims import part_module

if TYPE_CHECKING:
    from tessera.evaluation.items import Item

MIXED: Mapping[str, Any] = {"kinds": {"scene": 0.7, "text": 0.1, "chart": 0.2}, "things": (2, 6)}
"""Scenes, texts and charts, of things that can be told apart."""


def choices(world: Mapping[str, Any], seed: int, count: int) -> list[Item]:
    """Candidates of MMStar, `count` / 18 of each axis, rounded up."""
    from tessera.world import WorldConfig

    mmstar = part_module(registry.get("benchmarks", "mmstar"))
    axes = sum(map(len, mmstar.CAPABILITIES.values()))
    settings = mmstar.MMStar.Config(per_axis=-(-count // axes), seed=seed, world=WorldConfig(**{"split": "test", **world}))
    found: list[Item] = mmstar.MMStar(settings).items()
    return found


def planted(items: Sequence[Item], stream: str = "test") -> list[Item]:
    """Questions that need no picture, one for each of the items' pictures: a thing's kind, or what the question itself says."""
    from tessera.evaluation.items import Item
    from tessera.world.concepts import concepts
    from tessera.world.questions.phrasing import article
    from tessera.world.rng import Rng
    from tessera.world.scene import Question

    offered = part_module(registry.get("benchmarks", "mmstar")).offered
    table = concepts()
    made = []
    for number, item in enumerate(items):
        rng = Rng("planted", stream, item.sample.index, number)
        names = [table[c] for c in rng.pick(item.sample.pool, 4)]
        kinds = list(dict.fromkeys(c.category for c in names))
        if rng.chance(0.5) and len(kinds) == 4:
            text, answer, options = f"What kind of thing is {article(names[0].name)} {names[0].name}?", kinds[0], kinds
        else:
            a, b = names[0].name, names[1].name
            side = rng.choice(("left of", "right of", "above", "below"))
            text, answer, options = f"The {a} is {side} the {b}. What is {side} the {b}?", a, [c.name for c in names]
        question = Question(type="planted", form="choice", text=text, answer=answer, query=(("op", "planted"),))
        made.append(Item(item.sample, (offered(question, rng.shuffled(options), False),)))
    return made
