"""Weaknesses of a model's answers: it says yes to what is not there, or names what is not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tessera.lab.experiment import Condition, Effect, Given, Vary

if TYPE_CHECKING:
    from tessera.lab.judge import Outcomes
    from tessera.lab.lab import Lab

SEED = 900
"""Of the scenes on which preconditions are measured: other ones than the experiments'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaysYes(Given):
    """The model answers yes to more than `least` of the questions whether something is there that is not.

    model: a reference model; questions: existence questions, half of which ask for what is not there"""

    words: ClassVar[str] = "the model says yes to what is not there (share of false yes)"

    model: str
    least: float = 0.5
    questions: int = 400

    def depends(self) -> tuple[str, ...]:
        """See `Given`."""
        return ("protocol answering", f"model {self.model}")

    def measure(self, lab: Lab) -> Condition:
        """The share of false yes, with a bootstrap interval over images."""
        from tessera.lab.protocols.answering import Answering

        protocol = Answering(model=self.model, types=("existence",), seed=SEED)
        outcomes = lab.outcomes(protocol, Vary("plain"), 0, 0, self.questions)
        return _above(self.words, outcomes, "false yes", self.least)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invents(Given):
    """More than `least` of the things that the model lists are not there.

    model: a reference model; scenes: that it lists"""

    words: ClassVar[str] = "the model names what is not there (share of the things named, CHAIR)"

    model: str
    least: float = 0.1
    scenes: int = 200

    def depends(self) -> tuple[str, ...]:
        """See `Given`."""
        return ("protocol captions", f"model {self.model}")

    def measure(self, lab: Lab) -> Condition:
        """CHAIR with a bootstrap interval over images."""
        from tessera.lab.protocols.captions import Captions

        outcomes = lab.outcomes(Captions(model=self.model, seed=SEED), Vary("plain"), 0, 0, self.scenes)
        return _above(self.words, outcomes, "hallucinated", self.least)


def _above(words: str, outcomes: Outcomes, metric: str, least: float) -> Condition:
    """The mean of a metric as a condition, which holds where its 95 % interval lies above `least`."""
    from tessera.lab.judge import estimate

    found = estimate(Effect((("model", metric, 1.0),), words), {"model": outcomes}, metric, "image", 0.95)
    return Condition(words=words, value=found.value, low=found.low, high=found.high, needed=least, holds=found.low > least)
