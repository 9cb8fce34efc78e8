"""Weaknesses of a model's answers: it says yes to what is not there, or names what is not there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tessera.lab.experiment import Condition, Effect, Given, Vary

if TYPE_CHECKING:
    from tessera.lab.lab import Lab

SEED = 900
"""Of the scenes on which preconditions are measured: other ones than the experiments'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SaysYes(Given):
    """The model says yes more often than yes is right, which is in half of the questions.

    model: a reference model; questions: existence questions, half of which ask for what is not there"""

    words: ClassVar[str] = "the model says yes more often than in the half in which it is right (share of yes)"

    model: str
    questions: int = 400

    def depends(self) -> tuple[str, ...]:
        """See `Given`."""
        return ("protocol answering", f"model {self.model}")

    def measure(self, lab: Lab) -> Condition:
        """The share of yes, with a bootstrap interval over images."""
        from tessera.lab.judge import estimate
        from tessera.lab.protocols.answering import Answering

        protocol = Answering(model=self.model, types=("existence",), seed=SEED)
        outcomes = {"model": protocol.outcomes(lab, Vary("plain"), 0, 0, self.questions)}
        found = estimate(Effect((("model", "yes rate", 1.0),), self.words), outcomes, "yes rate", "image", 0.95)
        return Condition(words=self.words, value=found.value, low=found.low, high=found.high, needed=0.5, holds=found.low > 0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Invents(Given):
    """Of the things that the model lists a higher share is not there than of those that `than` lists.

    model, than: reference models; scenes: that they list"""

    words: ClassVar[str] = "how much more of the things named is not there than of those that the plain model names (CHAIR)"

    model: str
    than: str = "nano"
    scenes: int = 200

    def depends(self) -> tuple[str, ...]:
        """See `Given`."""
        return ("protocol captions", f"model {self.model}", f"model {self.than}")

    def measure(self, lab: Lab) -> Condition:
        """The difference in CHAIR, with a bootstrap interval over images."""
        from tessera.lab.judge import estimate
        from tessera.lab.protocols.captions import Captions

        outcomes = {
            name: Captions(model=model, seed=SEED).outcomes(lab, Vary("plain"), 0, 0, self.scenes)
            for name, model in (("model", self.model), ("than", self.than))
        }
        effect = Effect((("model", "hallucinated", 1.0), ("than", "hallucinated", -1.0)), self.words)
        found = estimate(effect, outcomes, "hallucinated", "image", 0.95)
        return Condition(words=self.words, value=found.value, low=found.low, high=found.high, needed=0.0, holds=found.low > 0)
