"""Made-up parts and claims of a socket of their own, in a temporary folder that stands for the package; nothing takes time."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from tessera import registry
from tessera.lab import evidence
from tessera.lab.behaviour import Numbers
from tessera.lab.experiment import Arm, Vary
from tessera.lab.fingerprints import named
from tessera.lab.lab import Lab
from tessera.lab.local_lab import LocalLab
from tessera.lab.outcomes import Outcomes, Unit
from tessera.lab.protocols import table
from tessera.lab.protocols.base import CostProtocol, Costs, Protocol

SOCKET = "brain"

PART = '''"""{name} reads <b>minds</b>: an e.g. toy. It does little.

Source: Doe et al., "Minds & Toys", 2031, arXiv:3101.01234. It looks first.

Deviations: none known; see `keep`.

Shapes: [B, N, D] -> [B, N, D].
"""
from tessera.registry import part


@part("{name}", socket="brain"{catalog})
class Toy:
    class Config:
        keep: float = 0.5
        must: int

    def act(self, x):
        return [2 * value for value in x]
'''

HEAD = '''"""What {name} promises."""
from pathlib import Path

from tests.lab.toys import ToyCost, ToyProtocol

from tessera.lab.experiment import Checked, Cost, Exact, Experiment, Paper, Vary, beats, worse

LOG = Path(__file__).with_suffix(".log")
CLAIMS = []


def ran(name):
    with LOG.open("a") as log:
        log.write(name + " ")


def true(lab):
    ran("is_one")
    return Checked(checks={"equal": True}, measured={"difference": 1 / 3})


def false(lab):
    return Checked(checks={"equal": False}, measured={"difference": 1.0})


def crashes(lab):
    ran("falls")
    raise ValueError("no\\n  ground")


def waits(lab):
    ran("waits")
    if not LOG.with_suffix(".once").exists():
        LOG.with_suffix(".once").touch()
        raise KeyboardInterrupt
    return Checked(checks={"ended": True})
'''

EXACT = 'CLAIMS.append(Exact(id="is_one", promise="One [bold] is one.", run=true, paper="section 4"))\n'
WRONG = 'CLAIMS.append(Exact(id="two_is_one", promise="Two is one.", run=false))\n'
CRASH = 'CLAIMS.append(Exact(id="falls", promise="It falls over.", run=crashes))\n'
INTERRUPTED = 'CLAIMS.append(Exact(id="waits", promise="Someone presses Ctrl-C, once.", run=waits))\n'
EFFECT = """CLAIMS.append(
    Experiment(
        id="helps",
        promise="It helps.",
        paper="table 2",
        protocol=ToyProtocol(),
        treatment=Vary("toy", share=0.8),
        baseline=Vary("none", share=0.5),
        control=Vary("shuffled", share=0.2),
        primary=beats("baseline"),
        valid_if=(worse("control"),),
    )
)
"""
COST = """CLAIMS.append(
    Cost(
        id="saves",
        promise="It saves half.",
        protocol=ToyCost(),
        treatment=Vary("toy", cost=1.0),
        baseline=Vary("none", cost=2.5),
        at_least={"ratio": Paper(2.0, "table 3")},
    )
)
"""
CALLS: list[tuple[str, int, int]] = []
"""(arm, first unit, units) of all that was measured since a wing was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyProtocol(Protocol):
    """An arm is right about `share` of the images, and one that is right about more is right about those too."""

    name: ClassVar[str] = "toy"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "image"
    looks: ClassVar[tuple[int, ...]] = (60, 120)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)
    behaves: ClassVar[float] = 1.0
    interrupted_after: ClassVar[int] = 1000

    def core(self) -> tuple[str, ...]:
        return ()

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        if len(CALLS) >= self.interrupted_after:
            raise KeyboardInterrupt
        assert isinstance(arm, Vary)
        CALLS.append((arm.name, first, count))
        right = np.random.default_rng(first).random(count) < arm.settings["share"]
        return Outcomes({"accuracy": (right.astype(float), np.ones(count))})

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        return {"behaves": [cls.behaves]}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToyCost(CostProtocol):
    """Costs are what arms say."""

    name: ClassVar[str] = "toy_cost"
    version: ClassVar[int] = 1

    def core(self) -> tuple[str, ...]:
        return ()

    def measure(self, lab: Lab, treatment: Arm, baseline: Arm | None) -> Costs:
        assert isinstance(treatment, Vary) and isinstance(baseline, Vary)
        ratio = baseline.settings["cost"] / treatment.settings["cost"]
        return Costs(counted={"ratio": ratio}, timed={"ratio": (2.0, 1.9, 2.2)}, shape="no tokens")

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        return {"one": [1.0]}


class Wing:
    """A package of one socket, with its parts, claims and evidence: files that tests write."""

    def __init__(self, checkout: Path) -> None:
        self.package = checkout / "src" / "tessera"
        self.parts, self.claims, self.evidence = (self.package / room / SOCKET for room in ("parts", "claims", "evidence"))
        for folder in (self.parts, self.claims):
            folder.mkdir(parents=True)
            (folder / "__init__.py").touch()
        (checkout / "pyproject.toml").touch()

    def part(self, name: str, *claims: str, catalog: int | None = None, text: str = PART) -> Path:
        """Writes a part's file, and that of its claims if it has some; both are imported anew."""
        number = "" if catalog is None else f", catalog={catalog}"
        path = self.parts / f"{name}.py"
        path.write_text(text.replace("{name}", name).replace("{catalog}", number))
        if claims:
            (self.claims / f"{name}.py").write_text(HEAD.replace("{name}", name) + "\n\n" + "".join(claims))
        self.changed()
        return path

    def changed(self) -> None:
        """Files were written by hand."""
        named.source_hash.cache_clear()
        importlib.invalidate_caches()
        _forget()

    def ran(self, name: str = "toy") -> list[str]:
        """Exact claims that ran, in order."""
        log = (self.claims / name).with_suffix(".log")
        return log.read_text().split() if log.is_file() else []

    def lab(self) -> LocalLab:
        """A lab as a new process would make it."""
        return LocalLab(cache=self.package.parent / "cache", threads=0)


@contextmanager
def wing_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wing]:
    """The wing is the only content of its socket while the context lasts. What a part does is its `act` of 1, 2, 3."""
    import tessera.claims
    import tessera.parts

    def acts(part: registry.Part) -> dict[str, Any]:
        return {"act": [float(value) for value in part.target().act((1.0, 2.0, 3.0))]}

    made = Wing(folder / "checkout")
    for package in (tessera.parts, tessera.claims):
        room = made.package / package.__name__.rpartition(".")[2]
        monkeypatch.setattr(package, "__path__", [str(room), *package.__path__])
    for module in (evidence, named):
        monkeypatch.setattr(module, "PACKAGE", made.package)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # its times are in seconds
    monkeypatch.setattr("tessera.lab.fingerprints.parts.of_part", acts)
    monkeypatch.setattr(table, "protocols", lambda: {"toy": ToyProtocol, "toy_cost": ToyCost})
    CALLS.clear()
    made.changed()
    try:
        yield made
    finally:
        made.changed()


def _forget() -> None:
    for name in [n for n in sys.modules if n.startswith((f"tessera.parts.{SOCKET}", f"tessera.claims.{SOCKET}"))]:
        del sys.modules[name]
    for key in [k for k in registry._registered if k[0] == SOCKET]:
        del registry._registered[key]
