"""The questions of an evaluation: drawn from the world, equally many of every type."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tessera.config import config
from tessera.errors import UserError, unknown
from tessera.world import World, WorldConfig
from tessera.world.dataset import Sample
from tessera.world.questions import TYPES
from tessera.world.rng import Rng
from tessera.world.scene import Question

_TASTE = 64
"""Samples of a kind after which the types that it has not given are taken not to come from it."""
_PATIENCE = 4000
"""Samples without a question of a type after which the search for it ends."""
_STRIDE = 1_000_000


def _test() -> WorldConfig:
    return WorldConfig(split="test")


@config
class EvaluationConfig:
    """world: where the scenes come from; n: questions in all, shared equally among `types` (all of them when empty); seed: which
    scenes of the world, 0 the first ones; batch_size: samples answered together; max_new_tokens: longest answer;
    examples: right and wrong answers kept of each type."""

    world: WorldConfig = field(default_factory=_test)
    n: int = 5000
    types: tuple[str, ...] = ()
    seed: int = 0
    batch_size: int = 16
    max_new_tokens: int = 24
    examples: int = 2

    def check(self) -> None:
        """Raises `UserError` for a value outside its range."""
        self.world.check()
        for name in self.types:
            if name not in TYPES:
                raise unknown("question type", name, TYPES)
        for key, least in (("n", 1), ("seed", 0), ("batch_size", 1), ("max_new_tokens", 1), ("examples", 0)):
            if getattr(self, key) < least:
                raise UserError(f"evaluation.{key} is {getattr(self, key)}; at least {least} is needed.")

    @property
    def per_type(self) -> int:
        """Questions of each type."""
        return math.ceil(self.n / len(self.types or TYPES))


@dataclass(frozen=True, slots=True)
class Item:
    """One sample and the questions that are asked about it."""

    sample: Sample
    questions: tuple[Question, ...]


def draw(config: EvaluationConfig) -> list[Item]:
    """`config.per_type` questions of every type, several about one sample; the same config gives the same ones.

    Samples are taken in order. Kinds of samples that cannot give a type that is still wanted are passed over. A type that the
    world does not give is left out. Raises `UserError` if it was named in `config.types`, or if no type is left.
    """
    config.check()
    world = World(config.world)
    wanted = dict.fromkeys([t for t in TYPES if t in config.types or not config.types], config.per_type)
    kinds = {k: w for k, w in sorted(config.world.kinds.items()) if w > 0}
    gives: dict[str, set[str]] = {k: set() for k in kinds}
    seen: Counter[str] = Counter()
    since = dict.fromkeys(wanted, 0)
    items: list[Item] = []
    index = config.seed * _STRIDE
    while True:
        open_types = {t for t, n in wanted.items() if n > 0 and since[t] < _PATIENCE}
        useful = [k for k in kinds if seen[k] < _TASTE or gives[k] & open_types]
        if not open_types or not useful:
            break
        kind = Rng("evaluation", config.seed, index).weighted(useful, [kinds[k] for k in useful])
        sample = world.sample(index, kind)
        index += 1
        seen[kind] += 1
        chosen = []
        for question in sample.questions():
            gives[kind].add(question.type)
            if wanted.get(question.type, 0) > 0:
                wanted[question.type] -= 1
                chosen.append(question)
        found = {q.type for q in chosen}
        for name in open_types:
            since[name] = 0 if name in found else since[name] + 1
        if chosen:
            items.append(Item(sample, tuple(chosen)))
    missing = [t for t, n in wanted.items() if n == config.per_type]
    if missing and (config.types or len(missing) == len(wanted)):
        raise UserError(f"this world ({', '.join(kinds)}) has no questions of type {', '.join(missing)}.")
    return items


def fingerprint(items: Iterable[Item]) -> str:
    """16 hexadecimal digits that differ when another question is asked or about another sample."""
    digest = hashlib.sha256()
    for item in items:
        for q in item.questions:
            digest.update(f"{item.sample.index}\x1f{q.text}\x1f{q.answer}\x1e".encode())
    return digest.hexdigest()[:16]
