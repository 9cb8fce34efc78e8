"""Benchmarks are tried on planted faults: answers whose fault is known are scored, and the benchmark has to tell them apart.

`Removal` asks the same questions before and after an object is taken away; `QuestionSelection` sorts questions that need no
picture out of those that do, and `Choices` asks a model what is left. Nothing is trained, so the units are images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tessera import registry
from tessera.lab.choices import MIXED, choices, planted
from tessera.lab.claims import part_module
from tessera.lab.experiment import Arm, Vary
from tessera.lab.outcomes import Outcomes
from tessera.lab.protocols.base import Protocol, chosen

if TYPE_CHECKING:
    from tessera.evaluation.items import Item
    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit
    from tessera.world.dataset import Sample

ASKED = {"image": ("own", "blurred", "mismatched", "none"), "says": ("model", "truth", "yes", "no")}
"""What an arm is shown, and who answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal(Protocol):
    """A benchmark of pictures before and after a removal (BEAF). model: a reference model that answers; removals, absent: of the
    benchmark; seed: of the world.

    Arms: `Vary(name, image="own" | "blurred" | "mismatched" | "none")`: every picture as it is; with the world's strongest blur;
    the picture before of the next scene; none. Or `says="truth" | "yes" | "no"` in place of the model.
    Units are scenes. Metrics: accuracy; TU, IG, SBp, SBn (of questions about what was removed); ID (of the others).
    """

    name: ClassVar[str] = "planted removal"
    version: ClassVar[int] = 2
    unit: ClassVar[Unit] = "image"
    looks: ClassVar[tuple[int, ...]] = (40, 100, 200)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)

    model: str = "nano"
    removals: int = 3
    absent: int = 3
    world: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def models(self) -> tuple[str, ...]:
        """The reference model."""
        return (self.model,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """`count` scenes of the look's own part of the world."""
        return self._measured(*lab.reference(self.model), arm, look, count)

    def _measured(self, model: Any, processor: Any, arm: Arm, look: int, count: int) -> Outcomes:
        from tessera.world import WorldConfig

        beaf = registry.get("benchmarks", "beaf").target
        options = {"split": "test", "kinds": {"scene": 1.0}, "things": (2, 6), **self.world, "seed": self.seed + look}
        settings = beaf.Config(scenes=count, removals=self.removals, absent=self.absent, world=WorldConfig(**options))
        items = beaf(settings).items()
        return removed(items, _said(model, processor, items, arm, _shown(items, arm)))

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Known answers on three scenes, and what a tiny random model says."""
        from tessera.lab.protocols.tiny import tiny_model

        found: dict[str, list[float] | str] = {}
        small = cls(removals=2, absent=1, world={"width": 64, "height": 64})
        arms = [Vary(says, says=says) for says in ("truth", "yes", "no")]
        for arm in (*arms, Vary("own"), Vary("blurred", image="blurred"), Vary("next", image="mismatched")):
            outcomes = small._measured(*tiny_model(), arm, 0, 3)
            for metric, (totals, counts) in sorted(outcomes.metrics.items()):
                found[f"{arm.label}: {metric}"] = [*totals.tolist(), *counts.tolist()]
        return found


def removed(items: Sequence[Item], said: Sequence[Sequence[str]]) -> Outcomes:
    """Outcomes per scene of the answers to BEAF's items, by its own rule of what an answer and a change are."""
    import numpy as np

    beaf = part_module(registry.get("benchmarks", "beaf"))
    names = ("accuracy", "TU", "IG", "SBp", "SBn", "ID")
    scenes = list(dict.fromkeys(item.sample.index for item in items))
    totals, counts = ({name: np.zeros(len(scenes)) for name in names} for _ in range(2))
    before: dict[tuple[int, object], str] = {}
    for item, texts in zip(items, said, strict=True):
        place = scenes.index(item.sample.index)
        for question, text in zip(item.questions, texts, strict=True):
            gone, concept = question.asked("removed"), question.asked("concept")
            after = beaf.outcome(text, question.answer)
            totals["accuracy"][place] += after in ("TP", "TN")
            counts["accuracy"][place] += 1
            if gone == -1:
                before[place, concept] = after
            elif gone == concept:
                for name in ("TU", "IG", "SBp", "SBn"):
                    totals[name][place] += beaf.CHANGES.get((before[place, concept], after)) == name
                    counts[name][place] += 1
            else:
                totals["ID"][place] += before[place, concept][0] != after[0]
                counts["ID"][place] += 1
    return Outcomes({name: (totals[name], counts[name]) for name in names})


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionSelection(Protocol):
    """Among questions of the test split two fifths are planted that need no picture: the question tells the answer. Judges answer
    all of them without pictures, the options in every order, and a benchmark of choices (MMStar) drops what they get right.

    judge: a reference model. Arms: `Vary(name)`, the judge; `Vary(name, judge="guess")`, one of the options at random.
    Metrics: planted dropped, visual dropped (shares of these questions); blind accuracy of what stays, over trials.
    """

    name: ClassVar[str] = "planted selection"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "image"
    looks: ClassVar[tuple[int, ...]] = (90, 180, 360)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)

    judge: str = "nano-text"
    seed: int = 0
    world: Mapping[str, Any] = field(default_factory=lambda: dict(MIXED))

    def models(self) -> tuple[str, ...]:
        """The judge."""
        return (self.judge,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """About `count` questions that need their picture, and two thirds as many that do not."""
        judge = chosen(arm, judge=(self.judge, "guess"))["judge"]
        return self._measured(None if judge == "guess" else lab.reference(judge), look, count)

    def _measured(self, judge: tuple[Any, Any] | None, look: int, count: int) -> Outcomes:
        import numpy as np

        mmstar = registry.get("benchmarks", "mmstar").target
        visual = choices(self.world, self.seed + look, count)
        items = [*visual, *planted(visual[: round(len(visual) * 2 / 3)], "test")]
        benchmark = mmstar(mmstar.Config(), items)
        hits = np.asarray(benchmark.hits([judge]) if judge else benchmark.hits([], [Guess()]))
        known = {id(item) for item in benchmark.select([judge] if judge else [], [] if judge else [Guess()]).items()}
        gone = np.asarray([float(id(item) not in known) for item in items])
        needless = np.arange(len(items)) >= len(visual)
        return per_picture(
            items,
            {
                "planted dropped": (gone * needless, needless),
                "visual dropped": (gone * ~needless, ~needless),
                "blind accuracy": (hits, np.ones(len(items))),
                "blind accuracy of what stays": (hits * (1 - gone), 1 - gone),
            },
        )

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """A guessing judge on some twenty questions, and the questions themselves."""
        small = cls()
        outcomes = small._measured(None, 0, 18)
        found: dict[str, list[float] | str] = {n: [*t.tolist(), *c.tolist()] for n, (t, c) in outcomes.metrics.items()}
        visual = choices(small.world, 0, 18)
        found["asked"] = " | ".join(f"{i.questions[0].text} {i.questions[0].answer}" for i in (*visual[:4], *planted(visual[:4])))
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Choices(Protocol):
    """A model answers a benchmark of choices (MMStar). Arms: `Vary(name, image="own" | "mismatched" | "none")`.

    Metrics: score, the share of right answers: over an arm with its picture and one without it makes the gain.
    """

    name: ClassVar[str] = "choices"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "image"
    looks: ClassVar[tuple[int, ...]] = (180, 360, 720)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)

    model: str = "nano"
    seed: int = 0
    world: Mapping[str, Any] = field(default_factory=lambda: dict(MIXED))

    def models(self) -> tuple[str, ...]:
        """The reference model."""
        return (self.model,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """About `count` questions, equally many of each axis."""
        return self._measured(*lab.reference(self.model), arm, look, count)

    def _measured(self, model: Any, processor: Any, arm: Arm, look: int, count: int) -> Outcomes:
        import numpy as np

        mmstar = registry.get("benchmarks", "mmstar").target
        items = choices(self.world, self.seed + look, count)
        said = _said(model, processor, items, arm, _shown(items, arm))
        right = mmstar(mmstar.Config(), items).score(items, said).outcomes
        return per_picture(items, {"score": (np.asarray([sum(one) for one in right]), np.ones(len(items)))})

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Known answers, and a tiny random model with another's pictures."""
        from tessera.lab.protocols.tiny import tiny_model

        found: dict[str, list[float] | str] = {}
        small = cls(world={**MIXED, "width": 64, "height": 64})
        for arm in (Vary("truth", says="truth"), Vary("next", image="mismatched"), Vary("blind", image="none")):
            totals, counts = small._measured(*tiny_model(), arm, 0, 18).of("score")
            found[arm.label] = [*totals.tolist(), *counts.tolist()]
        return found


def per_picture(items: Sequence[Item], found: Mapping[str, tuple[Any, Any]]) -> Outcomes:
    """Totals and counts [I] of items as outcomes of pictures, since questions about one picture go together."""
    import numpy as np

    pictures, place = np.unique([item.sample.index for item in items], return_inverse=True)

    def summed(values: Any) -> Any:
        return np.bincount(place, weights=np.asarray(values, dtype=np.float64), minlength=len(pictures))

    return Outcomes({name: (summed(totals), summed(counts)) for name, (totals, counts) in found.items()})


class Guess:
    """Answers a question of options with one of them, drawn by the question's text."""

    def answer_batch(self, rows: Sequence[Any], max_new_tokens: int) -> list[list[Any]]:
        """See `evaluation.answering.Generates`."""
        from tessera.evaluation.answering import Answer
        from tessera.world.rng import Rng

        return [
            [Answer(Rng("guess", q).choice(q.split(" Choose: ")[1].rstrip(".").split(", "))) for q in asked] for _, asked in rows
        ]


def _shown(items: Sequence[Item], arm: Arm) -> list[Item]:
    """The items with the pictures that an arm is shown."""
    image = chosen(arm, **ASKED)["image"]
    if image in ("own", "none"):
        return list(items)
    if image == "blurred":
        return [replace(item, sample=_blurred(item.sample)) for item in items]
    first = {item.sample.index: item.sample for item in reversed(items)}  # the picture before stands first
    order = list(dict.fromkeys(item.sample.index for item in items))
    following = dict(zip(order, [*order[1:], *order[:1]], strict=True))
    return [replace(item, sample=first[following[item.sample.index]]) for item in items]


def _blurred(sample: Sample) -> Sample:
    """The same scene, drawn with the strongest blur."""
    from tessera.world.dataset import Sample

    config = replace(sample.config, corruption="blur", strength=5)
    return Sample(config, sample.index, sample.kind, sample.frames, sample.changes, sample.pool)


def _said(model: Any, processor: Any, items: Sequence[Item], arm: Arm, shown: Sequence[Item]) -> list[list[str]]:
    from tessera.evaluation.harness import ask

    says, image = (chosen(arm, **ASKED)[name] for name in ("says", "image"))
    if says != "model":
        return [[q.answer if says == "truth" else says for q in item.questions] for item in items]
    return ask(model, processor, shown, blind=image == "none")
