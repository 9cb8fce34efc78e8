"""The result of an evaluation, as plain data that is written to JSON and read back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tessera.config import build
from tessera.errors import UserError
from tessera.evaluation.intervals import Interval, paired_bootstrap
from tessera.io import write_json


@dataclass(slots=True, kw_only=True)
class Share:
    """`accuracy` over `n` questions."""

    n: int
    accuracy: float


@dataclass(slots=True, kw_only=True)
class TypeResult:
    """One question type: accuracy with its 95 % interval, and what it has to be compared with.

    chance: a guess among the answers that the questions name; majority: the most frequent answer for each kind of question;
    blind: the accuracy without the images, and gain: what the images add to it (paired bootstrap), both None if not measured;
    iou: mean intersection over union where answers are boxes; forms, ops: by form of the question and by op of its query.
    outcomes: a word of 1 (right) and 0 (wrong) for each sample, in the order in which the questions were drawn.
    """

    n: int
    accuracy: float
    low: float
    high: float
    chance: float
    majority: float
    blind: float | None = None
    gain: Interval | None = None
    iou: float | None = None
    forms: dict[str, Share] = field(default_factory=dict)
    ops: dict[str, Share] = field(default_factory=dict)
    outcomes: str = ""

    @property
    def sees(self) -> bool:
        """Whether the accuracy is surely above all that needs no image: chance, the most frequent answer, blind answers."""
        return self.low > max(self.chance, self.majority) and (self.gain is None or self.gain.low > 0)


@dataclass(slots=True, kw_only=True)
class Example:
    """One question with the model's answer. `World(...).sample(index, kind)` of the result's world gives the pictures again."""

    index: int
    kind: str
    frames: int
    type: str
    form: str
    question: str
    answer: str
    said: str
    right: bool
    evidence: tuple[tuple[int, tuple[float, float, float, float]], ...] = ()


@dataclass(slots=True, kw_only=True)
class Result:
    """An evaluation. `accuracy`, `chance`, `majority` and `blind` are unweighted means over the question types.

    model: its name; weights: hash of its weights; without_images: whether it was asked blind; items: hash of the questions;
    config: the `EvaluationConfig`; seconds: of drawing, answering and scoring.
    """

    model: str
    weights: str
    parameters: int
    without_images: bool
    n: int
    samples: int
    accuracy: float
    low: float
    high: float
    chance: float
    majority: float
    blind: float | None = None
    types: dict[str, TypeResult] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)
    items: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    world_version: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    machine: str = ""
    seconds: float = 0.0

    def with_blind(self, blind: Result) -> Result:
        """This result with the blind accuracies of `blind` beside it, and the gain over them with its interval.

        Raises `UserError` unless both asked the same questions.
        """
        if blind.items != self.items:
            raise UserError(
                f"{blind.model} and {self.model} were not asked the same questions, so they cannot be compared; "
                "use the same world, n, types and seed for both."
            )
        types = {
            name: replace(
                found,
                blind=blind.types[name].accuracy,
                gain=paired_bootstrap(words(found.outcomes), words(blind.types[name].outcomes)),
            )
            for name, found in self.types.items()
        }
        return replace(self, types=types, blind=blind.accuracy)

    def numbers(self) -> dict[str, float]:
        """{"accuracy": mean, "accuracy/<type>": ...}, for a training log."""
        return {"accuracy": self.accuracy} | {f"accuracy/{k}": v.accuracy for k, v in self.types.items()}

    def save(self, path: str | Path) -> None:
        """Writes JSON, whole or not at all."""
        write_json(path, asdict(self))


def load_result(path: str | Path) -> Result:
    """A result from its JSON file. Raises `UserError` for a file that is none."""
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"there is no result {path}.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a result of an evaluation ({error}).") from error
    if not isinstance(values, Mapping):
        raise UserError(f"{path} is not a result of an evaluation.")
    return build(Result, values)


def words(outcomes: str) -> Sequence[Sequence[int]]:
    """The outcomes of a type per sample: "10 1" is [[1, 0], [1]]."""
    return [[int(c) for c in word] for word in outcomes.split()]
