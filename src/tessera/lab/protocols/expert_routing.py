"""Frozen experts are chosen by the question: coarse routing of an `experts` part, without a language model.

Seeds choose the scenes of training and of the test, the starting weights and the order of the data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tessera.errors import TesseraError
from tessera.lab.experiment import Arm, Vary
from tessera.lab.outcomes import Outcomes, per_seed
from tessera.lab.protocols.base import Protocol

if TYPE_CHECKING:
    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit

WAYS = ("routed", "all experts", "no expert", "random routing", "object expert alone", "reading expert alone")


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertRouting(Protocol):
    """Base: the first layer of the first tower. Experts: the towers, and one of random weights. The world's questions, about
    things or about what is written, decide what a linear layer says at every place of a 7 x 7 cut-out.

    images, tested: of a seed; steps: of the adapter, with any experts named; router_steps: of the router afterwards, whose labels
    come from the loss with each expert alone.

    Arms: `Vary(way)`, one of `WAYS`. Metrics: accuracy, the mean of things and characters; things; characters; picked: share of
    questions for which the router names the expert that is needed (the same for all arms).
    """

    name: ClassVar[str] = "expert_routing"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8, 12)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)

    towers: tuple[str, str] = ("object-expert", "reading-expert")
    images: int = 200
    tested: int = 100
    steps: int = 200
    router_steps: int = 150

    def models(self) -> tuple[str, ...]:
        """The towers' models."""
        return self.towers

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """One training for each seed."""
        if arm.label not in WAYS:
            raise TesseraError(f"expert_routing knows {', '.join(WAYS)}, not {arm.label!r}.")
        towers = [lab.reference(name)[0].encoder for name in self.towers]
        rows = [self.run(towers, seed) for seed in range(first, first + count)]
        names = {"accuracy": arm.label, "things": f"{arm.label}, things", "characters": f"{arm.label}, characters"}
        names["picked"] = "needed expert picked"
        return per_seed({metric: [row[name] for row in rows] for metric, name in names.items()})

    def run(self, towers: list[Any], seed: int) -> dict[str, float]:
        """Accuracies of all ways after one training."""
        from tessera.lab.routing import FirstLayer, asked_about, trained, untrained

        seen = [FirstLayer(towers[0]), *towers, untrained(towers[0])]
        train, test = (asked_about(seen, split, n, seed) for split, n in (("train", self.images), ("test", self.tested)))
        return trained(train, test, seed, self.steps, self.router_steps)

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Two small towers of random weights."""
        from tessera.lab.protocols.frozen_features import tiny_tower

        found = cls(images=8, tested=8, steps=2, router_steps=2).run([tiny_tower(0), tiny_tower(1)], 0)
        return {name: [value] for name, value in found.items()}
