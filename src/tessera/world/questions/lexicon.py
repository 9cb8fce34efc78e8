"""What the question makers know of words: concepts with their categories, and the names of colours."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


class ConceptLike(Protocol):
    """The part of `tessera.world.concepts.Concept` that questions need."""

    @property
    def name(self) -> str: ...
    @property
    def synonyms(self) -> tuple[str, ...]: ...
    @property
    def category(self) -> str: ...
    @property
    def subcategory(self) -> str: ...


@dataclass(frozen=True, slots=True)
class ConceptPool:
    """The concepts that may be named in a split, by kind. `common` is the median size of a category."""

    ids: tuple[int, ...]
    by_category: dict[str, tuple[int, ...]]
    by_subcategory: dict[str, tuple[int, ...]]
    common: int

    def share(self, category: str) -> float:
        """The chance, at most 1, with which a question about a category is kept so that large ones do not
        prevail.
        """
        return min(1.0, self.common / max(1, len(self.by_category.get(category, ()))))


@dataclass(frozen=True)
class Lexicon:
    """All concepts by id, and the colour names that answers are drawn from.

    `clashes` holds, for a concept, the ids of others that share a name or synonym with it: with one of them
    in the picture, the name would be ambiguous.
    """

    concepts: Sequence[ConceptLike]
    tints: tuple[str, ...]
    colours: tuple[str, ...]
    sign_colours: tuple[str, ...]
    clashes: dict[int, frozenset[int]] = field(init=False, repr=False)
    _pools: dict[tuple[int, ...], ConceptPool] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        holders: dict[str, set[int]] = {}
        for i, concept in enumerate(self.concepts):
            for word in (concept.name, *concept.synonyms):
                holders.setdefault(word, set()).add(i)
        clashes: dict[int, set[int]] = {}
        for ids in holders.values():
            for i in ids if len(ids) > 1 else ():
                clashes.setdefault(i, set()).update(ids - {i})
        object.__setattr__(self, "clashes", {i: frozenset(ids) for i, ids in clashes.items()})

    def pool(self, ids: tuple[int, ...]) -> ConceptPool:
        """The pool of a split; made once for each."""
        pool = self._pools.get(ids)
        if pool is None:
            categories: dict[str, list[int]] = {}
            subcategories: dict[str, list[int]] = {}
            for i in ids:
                categories.setdefault(self.concepts[i].category, []).append(i)
                subcategories.setdefault(self.concepts[i].subcategory, []).append(i)
            sizes = sorted(map(len, categories.values())) or [1]
            pool = ConceptPool(
                ids=ids,
                by_category={k: tuple(v) for k, v in categories.items()},
                by_subcategory={k: tuple(v) for k, v in subcategories.items()},
                common=sizes[len(sizes) // 2],
            )
            self._pools[ids] = pool
        return pool


@functools.cache
def world_lexicon() -> Lexicon:
    """The lexicon of the world's own artwork."""
    from tessera.world.backgrounds import COLOURS, TINTS
    from tessera.world.concepts import concepts
    from tessera.world.text import SIGN_COLOURS

    return Lexicon(concepts(), tuple(TINTS), tuple(COLOURS), tuple(name for name, _, _ in SIGN_COLOURS))
