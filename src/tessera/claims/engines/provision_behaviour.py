"""The checker's verdicts on the engine's questions, right and with other answers, and questions as benchmark items."""

from __future__ import annotations

from tessera.lab.behaviour import Numbers, digest


def behaviour() -> Numbers:
    """See above, about eight scenes of the world."""
    from tessera.data.scene_graph import of_samples
    from tessera.lab.protocols.generated import reanswered
    from tessera.parts.engines import provision
    from tessera.parts.engines.provision.checker import wrong_with
    from tessera.world import World

    world = World(split="train", kinds={"scene": 1.0})
    engine = provision.ProVision(provision.ProVision.Config())
    made = list(engine.instructions(of_samples([world.sample(i, "scene") for i in range(8)])))
    swapped = reanswered(made)
    items = provision.to_items(made[:20])
    return {
        "wrong with": "".join("x" if wrong_with(i) else "." for i in made),
        "wrong with swapped": "".join("x" if wrong_with(i) else "." for i in swapped),
        "items": digest([f"{q.text}|{q.answer}" for item in items for q in item.questions]),
    }
