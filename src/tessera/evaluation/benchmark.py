"""What a benchmark is: questions about pictures, and scores with intervals of what a model says to them.

A part of socket `benchmarks` says which items are asked (`items`) and what the answers are worth (`score`); asking is the
harness's affair (`evaluation.harness.ask`), the same for every benchmark, with pictures or blind, for any model of transformers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from tessera.evaluation.answering import Generates
from tessera.evaluation.harness import Progress, ask
from tessera.evaluation.intervals import Interval, paired_bootstrap
from tessera.evaluation.items import Item, fingerprint


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """numbers: name -> value with its 95 % interval, shares in 0..1; n: answers that were scored; items: hash of what was asked
    (scores of different items are not to be compared); outcomes: per item, 1 or 0 for every question, where right and wrong mean
    something."""

    numbers: Mapping[str, Interval]
    n: int
    items: str = ""
    outcomes: Sequence[Sequence[int]] = field(default_factory=tuple)

    def __getitem__(self, name: str) -> float:
        """The value of a number."""
        return self.numbers[name].value


class Benchmark(ABC):
    """A model -> scores with intervals. `max_new_tokens`: of the longest answer."""

    max_new_tokens: ClassVar[int] = 24

    @abstractmethod
    def items(self) -> Sequence[Item]:
        """What is asked, the same in every run of one configuration."""

    @abstractmethod
    def score(self, items: Sequence[Item], said: Sequence[Sequence[str]]) -> Scores:
        """What the texts `said`, one for each question of each item, are worth."""

    def run(
        self,
        model: Any,
        processor: Any,
        *,
        blind: bool = False,
        answers: Generates | None = None,
        progress: Progress | None = None,
    ) -> Scores:
        """Asks `model` and scores it; options as in `evaluation.harness.evaluate`."""
        items = self.items()
        said = ask(model, processor, items, blind=blind, answers=answers, progress=progress, max_new_tokens=self.max_new_tokens)
        return self.score(items, said)


def share(outcomes: Sequence[Sequence[int]]) -> Interval:
    """The share of ones, with an interval by bootstrap over items, because questions of one item go right or wrong together.

    Of nothing it is 0 between 0 and 1.
    """
    kept = [list(item) for item in outcomes if len(item)]
    if not kept:
        return Interval(0.0, 0.0, 1.0)
    return paired_bootstrap(kept, [[0] * len(item) for item in kept])


def identified(items: Sequence[Item]) -> str:
    """The hash for `Scores.items`."""
    return fingerprint(items)
