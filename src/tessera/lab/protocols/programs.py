"""Programs over tools that err are proposed for questions, run, and kept if their answer is right: nothing is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tessera.lab.experiment import Arm, Use
from tessera.lab.outcomes import Outcomes
from tessera.lab.protocols.base import Protocol

if TYPE_CHECKING:
    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit

STEPWISE = ("count", "total", "number", "relation", "distance", "size", "multihop")
"""Question types that take a step or two."""
EACH = 4
"""Most questions about one scene."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Programs(Protocol):
    """types: of the questions; noise: chance that a tool errs in a call; things: in a scene.

    Arms: `Use(part, k=..., temperature=..., filtered=...)`: programs a question, temperature of their choices, whether only one
    with the right answer is kept. The part's module has `attempt`, `rationale`, `run`, `Grammar` and `Tools`.
    Metrics: found (a program was kept, share of questions); agrees (share of the kept ones' rationales that say what an errorless
    run of the meant program says); explained (share of all questions with such a rationale).
    """

    name: ClassVar[str] = "programs"
    version: ClassVar[int] = 2
    unit: ClassVar[Unit] = "image"
    looks: ClassVar[tuple[int, ...]] = (300, 1000, 2000)
    arms: ClassVar[tuple[type[Arm], ...]] = (Use,)

    types: tuple[str, ...] = STEPWISE
    noise: float = 0.15
    things: tuple[int, int] = (1, 5)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """`count` scenes of the training split, numbers first .. first + count - 1; those without questions count nothing."""
        import numpy as np

        from tessera import registry
        from tessera.lab.claims import part_module
        from tessera.world import World
        from tessera.world.rng import Rng

        assert isinstance(arm, Use)
        part: Any = part_module(registry.get("distillation", arm.part))
        world = World(split="train", kinds={"scene": 1.0}, things=self.things)
        grammar = part.Grammar()
        rows = np.zeros((4, count))
        for place in range(count):
            sample = world[first + place]
            for question in [q for q in sample.questions(self.types) if grammar.meant(q.text) is not None][:EACH]:
                rng = Rng("tries", sample.index, question.text, arm.label)
                tried = part.attempt(sample, question, rng, proposer=grammar, noise=self.noise, **arm.options)
                rows[:2, place] += (float(tried.program is not None), 1.0)
                if tried.program is not None:
                    _, trace = part.run(grammar.meant(question.text), part.Tools(sample, 0.0, Rng("exact")))
                    rows[2:, place] += (float(tried.rationale == part.rationale(trace)), 1.0)
        return Outcomes({"found": (rows[0], rows[1]), "agrees": (rows[2], rows[3]), "explained": (rows[2], rows[1])})

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Twelve scenes, with one program and with three, filtered and not."""
        found: dict[str, list[float] | str] = {}
        for k, filtered in ((1, True), (3, True), (1, False)):
            arm = Use("vpd", k=k, filtered=filtered)
            for metric, (totals, counts) in sorted(cls(noise=0.3).measure(lab, arm, 0, 0, 12).metrics.items()):
                found[f"{arm.label}: {metric}"] = [*totals.tolist(), *counts.tolist()]
        return found
