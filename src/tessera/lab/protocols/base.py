"""The contract of protocols: settings, how an arm is measured, and a golden micro-run.

A protocol is a frozen dataclass of plain settings. Its file is imported by claims files, so it imports torch inside functions
only. `version` goes up when it measures something else; evidence of the old version is then stale.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

from tessera import registry
from tessera.errors import TesseraError
from tessera.lab.arms import Arm, Vary, kinds_named, plain_data
from tessera.lab.outcomes import Outcomes, Unit

if TYPE_CHECKING:
    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab


ANSWERS = ("world", "layers", "hosts", "generation", "evaluation")
"""Golden runs of the core (names of `CORE`) that every outcome depends on: questions, layers, engines that answer, scoring."""
TRAINS = ("plans", "labels", "trainer")
"""Those that it depends on besides where something is trained."""


APART = 1_000_000
"""How far apart in the world the scenes of two seeds begin."""


def parts_named(names: Sequence[str]) -> list[str]:
    """`socket/name` of the registered parts of these names, of all sockets that have one."""
    return [f"{socket}/{name}" for name in dict.fromkeys(names) for socket in registry.SOCKETS if name in registry.names(socket)]


def chosen(arm: Arm, **known: tuple[str, ...]) -> dict[str, str]:
    """Settings of a `Vary`, each one of the words known for it, the first of them where it is not set. Raises `TesseraError` for
    settings and words that mean nothing."""
    assert isinstance(arm, Vary)
    found = {name: str(arm.settings.get(name, words[0])) for name, words in known.items()}
    if arm.settings.keys() - known.keys() or any(found[name] not in words for name, words in known.items()):
        said = "; ".join(f"{name} is one of {', '.join(words)}" for name, words in known.items())
        raise TesseraError(f"an arm's {said}; not {dict(arm.settings)}.")
    return found


@dataclass(frozen=True, slots=True)
class _Settings:
    def plain(self) -> dict[str, Any]:
        """Name, version and settings as plain data."""
        name, version = getattr(self, "name", ""), getattr(self, "version", 0)
        return {"protocol": name, "version": version, **{f.name: plain_data(getattr(self, f.name)) for f in fields(self)}}

    def named_parts(self) -> tuple[str, ...]:
        """Names of the parts that its settings name, which every arm runs through."""
        return tuple(dict.fromkeys(kinds_named(self.plain())))

    def models(self) -> tuple[str, ...]:
        """Reference models whose weights the outcomes depend on."""
        return ()

    def core(self) -> tuple[str, ...]:
        """Behaviours of the core that outcomes depend on, besides the protocol's own golden run (names of `CORE`)."""
        return ANSWERS

    def depends(self, *arms: Arm) -> list[str]:
        """Names of the behaviours (`tessera.lab.behaviour`) that outcomes of these arms depend on."""
        parts = parts_named([*(name for arm in arms for name in arm.parts()), *self.named_parts()])
        found = [f"protocol {getattr(self, 'name', '')}", *(f"core {n}" for n in self.core())]
        found += [*(f"model {n}" for n in self.models()), *(f"part {key}" for key in parts)]
        return list(dict.fromkeys(found))


@dataclass(frozen=True, slots=True)
class Protocol(_Settings):
    """Measures the arms of an effect.

    unit   image: nothing is trained, all arms answer about the same images; seed: something is trained with each seed
    looks  units at each look: questions, or seeds
    arms   kinds of arms that it takes
    """

    name: ClassVar[str]
    version: ClassVar[int]
    unit: ClassVar[Unit]
    looks: ClassVar[tuple[int, ...]]
    arms: ClassVar[tuple[type[Arm], ...]]

    def core(self) -> tuple[str, ...]:
        """What asks, answers and scores; where seeds are the units also what trains."""
        return (*ANSWERS, *TRAINS) if self.unit == "seed" else ANSWERS

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """Outcomes of units first .. first + count - 1 (questions or seeds), of look number `look` from 0.

        All arms get the same units: the same questions, or the same seeds, starting weights and order of data.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how an arm is measured")

    def outcomes(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """As `measure`, kept on disk: measured again only where something behaves otherwise."""
        key = [self.plain(), arm.plain(), look, first, count]

        def make() -> dict[str, Any]:
            return self.measure(lab, arm, look, first, count).plain()

        return Outcomes.parse(lab.kept(key, self.depends(arm), make))

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """A micro-run on tiny models, in seconds: numbers that change when the protocol measures something else."""
        raise NotImplementedError(f"{cls.__name__} has no golden run")


@dataclass(frozen=True, slots=True)
class CostProtocol(_Settings):
    """Counts what a treatment costs: ratios of operations, tokens or bytes, and measured seconds beside them."""

    name: ClassVar[str]
    version: ClassVar[int]

    def core(self) -> tuple[str, ...]:
        """Layers and hosts; nothing of the world."""
        return ("layers", "hosts")

    def measure(self, lab: Lab, treatment: Arm, baseline: Arm | None) -> Costs:
        """What is counted (judged) and what is timed (reported with the machine)."""
        raise NotImplementedError(f"{type(self).__name__} does not say how a cost is measured")

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """See `Protocol.golden`; counted numbers only."""
        raise NotImplementedError(f"{cls.__name__} has no golden run")


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """counted: name -> number, the same on every machine; timed: name -> (median, low, high) of measured ratios; shape: sizes."""

    counted: Mapping[str, float]
    timed: Mapping[str, tuple[float, float, float]]
    shape: str
