"""A model writes boxes as text: whether its scores rank right boxes above wrong ones, and how many it gives for absent objects.

`Locating` asks a finished model, so its units are images; `Referents` trains one with and without questions about what is not
there, so its units are seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tessera import registry
from tessera.lab.claims import part_module
from tessera.lab.experiment import Arm, Vary
from tessera.lab.outcomes import Outcomes, per_seed
from tessera.lab.protocols.base import APART, Protocol, chosen

if TYPE_CHECKING:
    from tessera.evaluation.grounding import Located
    from tessera.lab.behaviour import Numbers
    from tessera.lab.conversations import About
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit
    from tessera.world import Sample

SCENES: Mapping[str, Any] = {"kinds": {"scene": 1.0}, "things": (1, 6)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Locating(Protocol):
    """part: of socket `grounding`; model: a reference model that lists everything with its box; world: options of `WorldConfig`;
    iou: overlap with a thing of its label from which a find is right, each thing once, in the order of writing.

    Arms: `Vary(name, scores="tokens" | "shuffled" | "constant" | "order")`: those of the tokens; the same in random order over
    all finds of the look; all alike; the sooner written the better.
    Metrics: precision by rank (share of finds that are right, each weighing its place in the order of all finds of the look by
    score, 0..1; the precision where scores say nothing, and above it just where the area under the ROC curve is above a half);
    recall; precision.
    """

    name: ClassVar[str] = "locating"
    version: ClassVar[int] = 3
    unit: ClassVar[Unit] = "image"
    looks: ClassVar[tuple[int, ...]] = (100, 250, 500)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)

    part: str = "griffon"
    model: str = "nano"
    world: Mapping[str, Any] = field(default_factory=lambda: dict(SCENES))
    iou: float = 0.5
    seed: int = 0

    def models(self) -> tuple[str, ...]:
        """The reference model."""
        return (self.model,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """`count` new scenes, numbers first .. first + count - 1 of the seed."""
        from tessera.world import World

        how = chosen(arm, scores=("tokens", "shuffled", "constant", "order"))["scores"]
        world = World(**{"split": "test", **self.world})
        samples = [world[self.seed * 1_000_000 + first + i] for i in range(count)]
        target = registry.get("grounding", self.part).target
        settings = target.Config(codec="hundredths", max_new_tokens=64, scores="constant" if how == "constant" else "tokens")
        pictures = [sample.images()[0] for sample in samples]
        found = target(settings).locate(*lab.reference(self.model), pictures, [()] * len(samples))
        by_score = {"shuffled": shuffled(found, look), "order": in_order(found)}.get(how, found)
        return ranked(by_score, samples, self.iou)

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Finds that are half right, with scores, shuffled, and by the order of writing."""
        from tessera.evaluation.grounding import Located
        from tessera.world import World

        world = World(**{"split": "test", **SCENES, "width": 64, "height": 64})
        samples = [world[i] for i in range(5)]
        finds = []
        for number, sample in enumerate(samples):
            things = [Located(t.name, t.box, 0.5 + 0.09 * at) for at, t in enumerate(sample.truth())]
            finds.append([*things, *(replace(t, box=(0.0, 0.0, 0.1, 0.1), score=0.4 + 0.05 * number) for t in things[:2])])
        found: dict[str, list[float] | str] = {}
        for name, given in (("scores", finds), ("shuffled", shuffled(finds, 0)), ("order", in_order(finds))):
            for metric, (totals, counts) in ranked(given, samples, 0.5).metrics.items():
                found[f"{name}: {metric}"] = [*totals.tolist(), *counts.tolist()]
        return found


def ranked(found: Sequence[Sequence[Located]], samples: Sequence[Sample], iou: float) -> Outcomes:
    """Outcomes per image of finds with scores; of equal scores each has the mean of their ranks."""
    import numpy as np

    from tessera.world.questions.boxes import box_iou

    every = np.asarray([f.score for finds in found for f in finds])
    rows = []
    for finds, sample in zip(found, samples, strict=True):
        free = [(t.name, t.box) for t in sample.truth()]
        hits, weight, hit_weight = 0, 0.0, 0.0
        for find in finds:
            fits = [at for at, (name, box) in enumerate(free) if name == find.label and box_iou(find.box, box) >= iou]
            rank = float((every < find.score).mean() + (every == find.score).mean() / 2)
            hits, weight, hit_weight = hits + bool(fits), weight + rank, hit_weight + rank * bool(fits)
            if fits:
                del free[fits[0]]
        rows.append((hit_weight, weight, hits, len(sample.truth()), hits, len(finds)))
    columns = np.asarray(rows, dtype=np.float64).T
    names = ("precision by rank", "recall", "precision")
    return Outcomes({name: (columns[2 * n], columns[2 * n + 1]) for n, name in enumerate(names)})


def in_order(found: Sequence[Sequence[Located]]) -> list[list[Located]]:
    """The same finds, of which the first of an image scores 1, the second a half, the third a third, and so on."""
    return [[replace(find, score=1 / place) for place, find in enumerate(finds, 1)] for finds in found]


def shuffled(found: Sequence[Sequence[Located]], seed: int) -> list[list[Located]]:
    """The same finds with their scores in random order."""
    from tessera.world.rng import Rng

    scores = iter(Rng("shuffled scores", seed).shuffled([f.score for finds in found for f in finds]))
    return [[replace(f, score=next(scores)) for f in finds] for finds in found]


@dataclass(frozen=True, slots=True, kw_only=True)
class Referents(Protocol):
    """part: of socket `grounding` with training data of four scenarios (one referent, one category, several categories, none);
    model: the reference model that learns on; pictures, steps, images: of its training, images a step; rounds: how often every
    scenario asks about a picture, each time about other things if it has some; asked: test scenes, each asked for a thing that is
    there and for one that is not; world: options of `WorldConfig`.

    Arms: `Vary(name, negatives="own" | "none" | "shuffled")`: all scenarios; the first two, twice as often; all, their answers
    in another order within the picture. All arms see the same pictures with as many conversations in the same order.
    Metrics: false boxes (answers about what is not there that hold a box), found (about what is there that hold its label).
    """

    name: ClassVar[str] = "referents"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)

    part: str = "griffon"
    model: str = "nano"
    pictures: int = 150
    rounds: int = 3
    steps: int = 60
    images: int = 2
    asked: int = 48
    world: Mapping[str, Any] = field(default_factory=lambda: {"kinds": {"scene": 1.0}, "things": (1, 4)})

    def models(self) -> tuple[str, ...]:
        """What learns on."""
        return (self.model,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """Seeds first .. first + count - 1."""
        from tessera.lab.conversations import conversations, trained_on
        from tessera.world import World
        from tessera.world.rng import Rng

        how = chosen(arm, negatives=("own", "none", "shuffled"))["negatives"]
        target = registry.get("grounding", self.part).target
        part = target(target.Config(codec="hundredths", max_new_tokens=48))
        test = World(**{"split": "test", **self.world})
        made: dict[str, list[float]] = {"false boxes": [], "found": []}
        for seed in range(first, first + count):
            samples = [test[APART * seed + i] for i in range(self.asked)]
            pictures = [sample.images()[0] for sample in samples]
            absent = [part.absent(sample, Rng("absent", sample.index), 1) for sample in samples]
            present = [[Rng("present", sample.index).choice(sample.truth()).name] for sample in samples]
            pool = conversations(*lab.reference(self.model), self._train_data(part, how, seed))
            learned = trained_on(lab, self.model, pool, seed=seed, steps=self.steps, images=self.images)
            false = part.locate(*learned, pictures, absent)
            made["false boxes"].append(sum(bool(finds) for finds in false) / len(samples))
            found = zip(part.locate(*learned, pictures, present), present, strict=True)
            made["found"].append(sum(any(f.label == name for f in finds) for finds, [name] in found) / len(samples))
        return per_seed(made)

    def _train_data(self, part: Any, how: str, seed: int = 0) -> list[About]:
        from tessera.world import World
        from tessera.world.rng import Rng

        scenarios = part_module(registry.get("grounding", self.part)).SCENARIOS
        world, made = World(**{"split": "train", **self.world}), list["About"]()
        for index in range(APART * seed, APART * seed + self.pictures):
            sample, rng = world[index], Rng("referents", index)
            turns: list[tuple[str, str, str]] = []
            for _ in range(2 * self.rounds if how == "none" else self.rounds):
                turns += part.examples(sample, rng, scenarios[:2] if how == "none" else scenarios)
            answers = [answer for _, _, answer in turns]
            if how == "shuffled":
                answers = rng.shuffled(answers)
            made.append((sample.images()[0], [(turn[1], answer) for turn, answer in zip(turns, answers, strict=True)]))
        return made

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """The training data of every arm, and a tiny random model that learns it for some steps."""
        from tessera.lab.conversations import conversations
        from tessera.lab.protocols.tiny import tiny_model
        from tessera.lab.scenes import batch

        small = cls(pictures=4, world={"kinds": {"scene": 1.0}, "things": (1, 4), "width": 64, "height": 64})
        target = registry.get("grounding", small.part).target
        part, (model, processor) = target(target.Config(codec="hundredths")), tiny_model()
        found: dict[str, list[float] | str] = {}
        for how in ("own", "none", "shuffled"):
            train_data = small._train_data(part, how)
            found[how] = " | ".join(f"{q} {a}" for _, turns in train_data for q, a in turns)
            pool = conversations(model, processor, train_data)
            found[f"{how}: loss"] = [float(model(**batch(pool, processor, pool.asked, alone=False)).loss.detach())]
        return found
