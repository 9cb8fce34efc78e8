"""The words of the world, for tokenizers that know it."""

from __future__ import annotations

from tessera.world.backgrounds import COLOURS, TINTS
from tessera.world.concepts import concepts, pool
from tessera.world.lists import LIST_PROMPTS
from tessera.world.questions import template_words
from tessera.world.scene import STYLES
from tessera.world.text import SIGN_COLOURS

CAPTION_PROMPTS = {
    "short": "Describe the picture.",
    "dense": "Describe the picture in detail.",
    "child": "Describe the picture for a child.",
}


def attribute_values() -> dict[str, list[str]]:
    """What can be told of a thing beside its name: its tint ("none": its own colours) and its style."""
    return {"tint": ["none", *TINTS], "style": list(STYLES)}


def words() -> list[str]:
    """Every lower-case or sentence-start word of questions, answers, rationales and captions about everyday concepts, and the
    numbers 0 to 99 and 00 to 99, sorted. Texts on signs are upper case and left out: they are to be spelt."""
    found = set(template_words())
    for index in pool("everyday"):
        concept = concepts()[index]
        found.update(concept.name.split(), concept.category.split())
    found.update(COLOURS, STYLES, (name for name, _, _ in SIGN_COLOURS))
    for prompt in (*CAPTION_PROMPTS.values(), *LIST_PROMPTS.values()):
        found.update(prompt.strip(".").split())
    found.update(str(n) for n in range(100))
    found.update(f"{n:02d}" for n in range(100))
    return sorted(found)
