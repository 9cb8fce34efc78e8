"""A comparison: the numbers of all contenders."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tessera.evaluation.intervals import Interval
    from tessera.measure.sides import Ratio


@dataclass(slots=True, kw_only=True)
class Kind:
    """Accuracy of one question type with its 95 % interval, over n questions."""

    n: int
    accuracy: float
    low: float
    high: float


@dataclass(slots=True, kw_only=True)
class Contender:
    """One contender.

    name        of the part, "none" for the plain model; how: "bare", "plugged", "around" or "trained"
    budget      what it was given, None where it has no such setting
    accuracy    mean over the types, low and high its 95 % interval; against: the difference to "none" (paired bootstrap)
    tokens      visual tokens of an image in a decoder layer, mean over layers
    flops       of reading one prompt and answering it
    time        how many times faster than "none" that is, and milliseconds
    parameters  of the model
    """

    name: str
    how: str
    options: dict[str, Any]
    budget: float | None
    accuracy: float
    low: float
    high: float
    types: dict[str, Kind]
    against: Interval | None
    tokens: float | None
    flops: int
    time: Ratio
    milliseconds: float
    parameters: int
    best: bool = False
    """Whether nothing else is as accurate for as few FLOPs."""


@dataclass(slots=True, kw_only=True)
class Comparison:
    """All contenders in the order in which they were asked for, "none" first; refused: name -> why it could not take part."""

    socket: str
    on: str
    budgets: tuple[float, ...]
    questions: int
    rows: list[Contender]
    refused: dict[str, str]
    shape: str
    machine: str
    versions: dict[str, str] = field(default_factory=dict)
