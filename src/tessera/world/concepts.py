"""The concepts of the world: names, synonyms, categories, and which of them are base, novel, everyday.

A concept is addressed by its index in `concepts()`; the order is fixed by the artwork (see `scripts/build_atlas.py`).
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from importlib import resources

from tessera.errors import unknown

POOLS = ("base", "novel", "everyday", "all")


@dataclass(frozen=True, slots=True)
class Concept:
    """`name` is unique, lower case; `category` is a plain word ("animal"); `everyday` marks short, unmistakable concepts."""

    name: str
    synonyms: tuple[str, ...]
    category: str
    subcategory: str
    code: str
    everyday: bool


@functools.cache
def concepts() -> tuple[Concept, ...]:
    """All concepts, in the order of the atlas."""
    text = (resources.files("tessera.world") / "assets/concepts.json").read_text(encoding="utf-8")
    return tuple(Concept(**{**row, "synonyms": tuple(row["synonyms"])}) for row in json.loads(text))


@functools.cache
def pool(name: str) -> tuple[int, ...]:
    """Concept indices of a pool: "base" (four fifths of the everyday ones), "novel" (the rest), "everyday", "all"."""
    if name not in POOLS:
        raise unknown("concept pool", name, POOLS)
    everyday = [i for i, c in enumerate(concepts()) if c.everyday]
    if name == "all":
        return tuple(range(len(concepts())))
    if name == "everyday":
        return tuple(everyday)
    return tuple(i for i in everyday if (_share("novel", concepts()[i].code) < 0.2) == (name == "novel"))


@functools.cache
def by_category(pool_name: str) -> dict[str, tuple[int, ...]]:
    """Concept indices of a pool by category; categories with a single concept are left out."""
    found: dict[str, list[int]] = {}
    for i in pool(pool_name):
        found.setdefault(concepts()[i].category, []).append(i)
    return {c: tuple(members) for c, members in found.items() if len(members) > 1}


@functools.cache
def held_out(concept: int, tint: str) -> bool:
    """Whether this colour x concept combination is kept out of training (one in five)."""
    return _share("combination", concepts()[concept].code, tint) < 0.2


def _share(*key: str) -> float:
    """A fixed number in [0, 1) for a key: splits must not move when concepts are added."""
    digest = hashlib.blake2b("\x1f".join(key).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64
