"""A model is trained further on a benchmark's own questions, or on as many others, and answers the benchmark without pictures.

Something is trained, so the units are seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tessera import registry
from tessera.lab.choices import MIXED
from tessera.lab.claims import part_module
from tessera.lab.experiment import Arm, Vary
from tessera.lab.outcomes import Outcomes, per_seed
from tessera.lab.protocols.base import Protocol, chosen

if TYPE_CHECKING:
    from tessera.evaluation.items import Item
    from tessera.lab.behaviour import Numbers
    from tessera.lab.conversations import About
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit

KNOWN = {"data": ("leaked", "clean"), "image": ("own", "none")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaked(Protocol):
    """part: of socket `benchmarks`, with a function `leakage`; model: what learns on, and what it is compared with; per_axis:
    questions of each axis; steps, images: of the training, images a step; world: options of `WorldConfig`. The questions are of
    the val split, since nothing is trained on the test split.

    Arms: `Vary(name, data="leaked" | "clean", image="own" | "none")`: fine-tuned on the benchmark's questions or with as many of
    the train split; with their pictures or as text alone.
    Metrics: leakage (what the model has right without pictures beyond what it had before, at least 0); blind score.
    """

    name: ClassVar[str] = "leaked questions"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8, 12)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)

    part: str = "mmstar"
    model: str = "nano"
    per_axis: int = 2
    steps: int = 40
    images: int = 4
    world: Mapping[str, Any] = field(default_factory=lambda: dict(MIXED))

    def models(self) -> tuple[str, ...]:
        """What learns on."""
        return (self.model,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """Seeds first .. first + count - 1."""
        from tessera.lab.conversations import conversations, trained_on

        settings = chosen(arm, **KNOWN)
        model, processor = lab.reference(self.model)
        leakage = part_module(registry.get("benchmarks", self.part)).leakage
        found: dict[str, list[float]] = {"leakage": [], "blind score": []}
        for seed in range(first, first + count):
            shown, benchmark = settings["image"], self._benchmark("val", seed)
            before = benchmark.run(model, processor, blind=True)
            pool = conversations(model, processor, self._train_data(settings["data"], seed))
            learned = trained_on(lab, self.model, pool, seed=seed, steps=self.steps, images=self.images, image=shown)
            after = benchmark.run(*learned, blind=True)
            found["leakage"].append(leakage(after, before).value)
            found["blind score"].append(after["score"])
        return per_seed(found)

    def _benchmark(self, split: str, seed: int = 0) -> Any:
        from tessera.world import WorldConfig

        target = registry.get("benchmarks", self.part).target
        world = WorldConfig(**{**self.world, "split": split})
        return target(target.Config(per_axis=self.per_axis, seed=seed, world=world))

    def _train_data(self, data: str, seed: int = 0) -> list[About]:
        items: Sequence[Item] = self._benchmark("val" if data == "leaked" else "train", seed).items()
        return [(item.sample.images()[0], [(q.text, q.answer) for q in item.questions]) for item in items]

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """The training data of every arm, its loss for a tiny random model, and what that has right without pictures."""
        from tessera.lab.conversations import conversations
        from tessera.lab.protocols.tiny import tiny_model
        from tessera.lab.scenes import batch

        small, found = cls(per_axis=1, world={**MIXED, "width": 64, "height": 64}), dict[str, Any]()
        model, processor = tiny_model()
        for data in KNOWN["data"]:
            train_data = small._train_data(data)
            found[data] = " | ".join(f"{q} {a}" for _, turns in train_data for q, a in turns)
            pool = conversations(model, processor, train_data[:4])
            for image in KNOWN["image"]:
                inputs = batch(pool, processor, pool.asked, alone=False, image=image)
                found[f"{data}, {image}: loss"] = [float(model(**inputs).loss.detach())]
        benchmark = small._benchmark("val")
        blind = benchmark.run(model, processor, blind=True)
        told = benchmark.score(benchmark.items(), [[q.answer for q in item.questions] for item in benchmark.items()])
        leakage = part_module(registry.get("benchmarks", small.part)).leakage
        found["leakage"] = [blind["score"], leakage(told, blind).value, leakage(blind, told).value]
        return found
