"""Random numbers that are the same on every machine and every Python version.

Only `random.Random.random()` (53-bit Mersenne Twister, fixed by Python's documentation) is used; choice, shuffle and the like
are written here, because the standard library's own have changed between versions.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Rng:
    """A deterministic stream, named by any mixture of strings and integers: `Rng("world", 1, "train", 0, 17)`."""

    __slots__ = ("_next",)

    def __init__(self, *name: str | int) -> None:
        digest = hashlib.blake2b("\x1f".join(map(str, name)).encode(), digest_size=16).digest()
        self._next = random.Random(int.from_bytes(digest, "big")).random

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A float in [low, high)."""
        return low + (high - low) * self._next()

    def below(self, n: int) -> int:
        """A whole number in [0, n)."""
        return int(self._next() * n)

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high], both ends included."""
        return low + self.below(high - low + 1)

    def chance(self, p: float) -> bool:
        """True with probability p."""
        return self._next() < p

    def choice(self, items: Sequence[T]) -> T:
        """One of the items."""
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """One of the items, with probability proportional to its weight."""
        point = self._next() * sum(weights)
        for item, weight in zip(items, weights, strict=True):
            point -= weight
            if point < 0:
                return item
        return items[-1]

    def pick(self, items: Sequence[T], k: int) -> list[T]:
        """K different items in random order (all of them if there are fewer)."""
        pool = list(items)
        k = min(k, len(pool))
        for i in range(k):
            j = i + self.below(len(pool) - i)
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:k]

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """All items in random order."""
        return self.pick(items, len(items))
