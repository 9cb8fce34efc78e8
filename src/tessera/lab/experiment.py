"""What a paper promises, as data that the lab runs and one rule judges. Imports no torch.

    CLAIMS = [
        Experiment(
            id="keeps_accuracy",
            promise="A quarter of the visual tokens keeps 95 % of the accuracy of all tokens.",
            paper="table 1",
            protocol=Answering(types=SEEING),
            treatment=Plug("fopru", keep=0.25),
            baseline=Plug("fopru", keep=1.0),
            control=Plug("random", keep=(0.25,), repeats=3),
            primary=retains("baseline", Paper(0.95, "table 1")),
            valid_if=(worse("control", than="baseline"),),
            secondary=(beats("control"),),
        ),
        Exact(id="top_quarter", promise="...", run=top_quarter),
        Cost(id="prefill", promise="...", protocol=Prefill(), treatment=Plug("fopru", keep=0.25), ...),
    ]

A part's claims stand in `tessera/claims/<socket>/<part>.py`, as a list named CLAIMS. An effect is a difference between arms on
the same units, written so that it is positive when the promise is kept; its margin is zero or a number of the paper.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

from tessera.errors import TesseraError
from tessera.lab.arms import Arm, Build, Plug, Use, Vary, plain_data
from tessera.lab.effects import Effect, Paper, beats, below, loses, reaches, reduces, retains, stays_under, worse

if TYPE_CHECKING:
    from tessera.lab.lab import Lab
    from tessera.lab.protocols.base import CostProtocol, Protocol

__all__ = [
    "KINDS", "LOOKS", "Arm", "Build", "Checked", "Claim", "Condition", "Cost", "Effect", "Exact", "Experiment", "Given", "Kind",
    "Paper", "Plug", "Use", "Vary", "beats", "below", "loses", "reaches", "reduces", "retains", "stays_under", "worse",
]  # fmt: skip
"""All that a claims file is written with, arms and effects included."""

Kind: TypeAlias = Literal["exact", "effect", "cost"]
KINDS: tuple[Kind, ...] = ("exact", "effect", "cost")
"""exact: an identity, or parity with a reference on shared weights; effect: the paper's promise as an experiment against a
baseline and a control; cost: a ratio of counted operations, tokens or bytes, with the measured time beside it."""

LOOKS = 3
"""An experiment looks at its data at most this often; intervals are widened for it (Bonferroni)."""


# Preconditions


class Given:
    """A property of the model or the data without which the promise has nothing to act on. Subclasses are frozen dataclasses."""

    words: ClassVar[str] = ""

    def measure(self, lab: Lab) -> Condition:
        """Whether it holds, with the number that says so."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it is measured")

    def depends(self) -> tuple[str, ...]:
        """Names of the behaviours that it is measured with (`tessera.lab.behaviour`), besides those of the experiment."""
        return ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A precondition as it was measured: `value` with its 95 % interval, and the value that is `needed`."""

    words: str
    value: float
    low: float
    high: float
    needed: float
    holds: bool


# Claims


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A promise about what a method does, as arms on the same units.

    id         unique within the part; promise: the paper's sentence, with metric, comparison and margin
    protocol   how arms are measured, with its settings
    treatment, baseline, control, others  what is compared; the control is what should fail
    primary    the only thing that the verdict is about
    valid_if   what must show, or nothing was tested (`invalid`)
    secondary  reported with intervals, no part of the verdict
    given      preconditions; where one does not hold the experiment is `not applicable`
    looks      units at each look, cumulative; None: the protocol's own
    note       one sentence on how to read it; amended: why it was changed after a result was seen, oldest first
    """

    kind: ClassVar[Kind] = "effect"
    id: str
    promise: str
    protocol: Protocol
    treatment: Arm
    control: Arm
    primary: Effect
    valid_if: tuple[Effect, ...]
    baseline: Arm | None = None
    others: Mapping[str, Arm] = field(default_factory=dict)
    metric: str = "accuracy"
    secondary: tuple[Effect, ...] = ()
    given: tuple[Given, ...] = ()
    looks: tuple[int, ...] | None = None
    paper: str = ""
    note: str = ""
    amended: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.valid_if:
            raise TesseraError(f"experiment {self.id!r}: valid_if must say how the control fails.")
        known = self.arms()
        for effect in (self.primary, *self.valid_if, *self.secondary):
            if missing := effect.arms() - known.keys():
                raise TesseraError(f"experiment {self.id!r}: no arm is called {', '.join(sorted(missing))}.")
        looks = self.sizes()
        if not 1 <= len(looks) <= LOOKS or list(looks) != sorted(set(looks)) or looks[0] < 1:
            raise TesseraError(f"experiment {self.id!r}: looks are 1 to {LOOKS} growing numbers of units, not {looks}.")
        if self.protocol.unit == "seed" and looks[0] < 5:
            raise TesseraError(f"experiment {self.id!r}: what is trained takes at least five seeds, not {looks[0]}.")
        for name, arm in known.items():
            if not isinstance(arm, self.protocol.arms):
                kinds = ", ".join(kind.__name__ for kind in self.protocol.arms)
                raise TesseraError(f"experiment {self.id!r}: {self.protocol.name} takes arms of kind {kinds}, not {name}={arm}.")

    def arms(self) -> dict[str, Arm]:
        """All arms by name, the treatment first."""
        named = {"treatment": self.treatment, "baseline": self.baseline, "control": self.control, **self.others}
        return {name: arm for name, arm in named.items() if arm is not None}

    def sizes(self) -> tuple[int, ...]:
        """Units at each look."""
        return self.looks or self.protocol.looks

    def digest(self) -> str:
        """12 hexadecimal digits of what is run and judged; wording, notes and places in the paper do not count."""
        seen = {name: arm.plain() for name, arm in self.arms().items()}
        effects = {
            role: [(effect.terms, effect.threshold) for effect in found]
            for role, found in (("primary", (self.primary,)), ("valid_if", self.valid_if))
        }
        given = [{"given": type(g).__name__, **plain_data(g)} for g in self.given]
        return _digest([self.protocol.plain(), seen, effects, given, self.metric, self.sizes()])


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What an exact claim found: conditions in words -> whether they hold; the numbers compared; sizes and dtype."""

    checks: Mapping[str, bool]
    measured: Mapping[str, float] = field(default_factory=dict)
    shape: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exact:
    """A promise that holds or fails: parity of the part with a reference that `run` writes from the equations."""

    kind: ClassVar[Kind] = "exact"
    id: str
    promise: str
    run: Callable[[Lab], Checked]
    paper: str = ""
    note: str = ""
    amended: tuple[str, ...] = ()

    def digest(self) -> str:
        """Empty: the code that runs is the claim, and it is run whenever it is asked for."""
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """A promise about what a method saves or adds: ratios of counted things, each at least (or at most) the paper's number.

    at_least, at_most  metric of the protocol -> the paper's number; measured seconds are reported beside them and not judged
    saves              metrics that have to be above 1, where the paper gives no number
    """

    kind: ClassVar[Kind] = "cost"
    id: str
    promise: str
    protocol: CostProtocol
    treatment: Arm
    baseline: Arm | None = None
    at_least: Mapping[str, Paper] = field(default_factory=dict)
    at_most: Mapping[str, Paper] = field(default_factory=dict)
    saves: tuple[str, ...] = ()
    paper: str = ""
    note: str = ""
    amended: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.at_least and not self.at_most and not self.saves:
            raise TesseraError(f"cost {self.id!r}: say what is promised, at_least or at_most, or saves.")

    def digest(self) -> str:
        """As of `Experiment`."""
        arms = [self.treatment.plain(), None if self.baseline is None else self.baseline.plain()]
        bounds = [{k: p.value for k, p in sorted(found.items())} for found in (self.at_least, self.at_most)]
        return _digest([self.protocol.plain(), arms, bounds, *([self.saves] if self.saves else [])])


Claim: TypeAlias = Experiment | Exact | Cost


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(plain_data(value), sort_keys=True).encode()).hexdigest()[:12]
