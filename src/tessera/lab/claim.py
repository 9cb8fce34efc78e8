"""What a paper promises, as a function that measures it.

    @claim("at 25 % of the tokens accuracy stays", kind="effect", paper="section 4.2")
    def keeps_accuracy(lab: Lab) -> Finding:
        ...
        return Finding(
            measured={"accuracy": pruned.mean},
            baseline={"accuracy": whole.mean},
            control={"accuracy": random.mean},
            checks={"within 2 points of the whole": ..., "5 points above random": ...},
        )

A claim stands in the file of its part, below the code. The verdict follows from the checks; nobody types it.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tessera import registry
from tessera.errors import TesseraError

if TYPE_CHECKING:
    from tessera.lab.lab import Lab

Kind: TypeAlias = Literal["exact", "effect", "cost"]
KINDS: tuple[Kind, ...] = ("exact", "effect", "cost")
"""exact: an identity, or parity with a reference on shared weights; effect: the paper's promise on the world, against a baseline
and a control; cost: tokens, FLOPs, measured time as a ratio."""

Verdict: TypeAlias = Literal["holds", "partly", "not reproduced", "not applicable", "crashed"]
VERDICTS: tuple[Verdict, ...] = ("holds", "partly", "not reproduced", "not applicable", "crashed")

Numbers: TypeAlias = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a claim measured.

    checks    condition in words -> whether it was met; together they make the verdict
    measured, baseline, control  named numbers of the part, of what it is compared with, and of what should fail
    seeds     seeds that were run (empty: nothing is left to chance)
    spread    standard deviation over seeds of measured numbers
    shape     what was timed or counted: sizes, threads, dtype
    note      one sentence: why, where a check was not met
    """

    checks: Mapping[str, bool]
    measured: Numbers = field(default_factory=dict)
    baseline: Numbers = field(default_factory=dict)
    control: Numbers = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    spread: Numbers = field(default_factory=dict)
    shape: str = ""
    note: str = ""

    @property
    def verdict(self) -> Verdict:
        """holds: every check is met; partly: some are; not reproduced: none; not applicable: there is none."""
        met = list(self.checks.values())
        if not met:
            return "not applicable"
        if all(met):
            return "holds"
        return "partly" if any(met) else "not reproduced"


@dataclass(frozen=True, slots=True)
class Claim:
    """One executable claim: `id` is its function's name."""

    id: str
    title: str
    kind: Kind
    paper: str
    run: Callable[[Lab], Finding]
    about: str


def claim(title: str, *, kind: Kind, paper: str = "") -> Callable[[Callable[[Lab], Finding]], Callable[[Lab], Finding]]:
    """Marks a function of a part's file as a claim. `paper` says where the promise stands."""
    if kind not in KINDS:
        raise TesseraError(f"a claim's kind is one of {', '.join(KINDS)}, not {kind!r}.")

    def mark(function: Callable[[Lab], Finding]) -> Callable[[Lab], Finding]:
        about = inspect.cleandoc(function.__doc__ or "")
        made = Claim(function.__name__, title, kind, paper, function, about)
        function.__claim__ = made  # type: ignore[attr-defined]
        return function

    return mark


def budget(function: Callable[[float, int], dict[str, Any]]) -> Callable[[float, int], dict[str, Any]]:
    """Marks a function of a part's file that says how the part meets a budget: (share, layers) -> options with which about
    `share` of the visual tokens are read, on average over `layers` decoder layers. `tessera compare` asks for it."""
    function.__budget__ = True  # type: ignore[attr-defined]
    return function


def budget_of(part: registry.Part) -> Callable[[float, int], dict[str, Any]] | None:
    """What `budget` marks in a part's file, None if nothing is."""
    return next((v for v in vars(part_module(part)).values() if getattr(v, "__budget__", False)), None)


def part_module(part: registry.Part) -> ModuleType:
    """The module of a part: one file, or the package that the part's folder is."""
    name: str = part.target.__module__
    if name.startswith("tessera.parts."):
        name = ".".join(name.split(".")[:4])
    return importlib.import_module(name)


def claims_of(part: registry.Part) -> list[Claim]:
    """The claims in a part's file, in the order in which they stand there."""
    found: dict[str, Claim] = {}
    for value in vars(part_module(part)).values():
        made: Any = getattr(value, "__claim__", None)
        if isinstance(made, Claim):
            found[made.id] = made
    return list(found.values())
