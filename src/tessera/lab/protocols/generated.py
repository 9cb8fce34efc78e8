"""A data engine against the world, which knows every answer: how many questions are wrong, and what a model learns from them.

`Generated` counts errors, so its units are pictures; `EngineData` trains a model on the engine's questions, so its units are
seeds.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from tessera import registry
from tessera.lab.claims import part_module
from tessera.lab.experiment import Arm, Vary
from tessera.lab.outcomes import Outcomes, per_seed
from tessera.lab.protocols.base import APART, Protocol, chosen

if TYPE_CHECKING:
    from tessera.data.engine import Instruction
    from tessera.data.scene_graph import Annotated
    from tessera.lab.behaviour import Numbers
    from tessera.lab.conversations import About
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit

BASE = ("existence", "position", "attribute", "category", "at")
"""What is asked about a picture without the engine."""
GRAPHS = ("truth", "expert", "shuffled labels")
DATA = ("base", "engine", "shuffled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated(Protocol):
    """part: of socket `engines`, with a module `checker` that works answers out again from the world's truth; programs: that run;
    model: the vision expert that draws graphs; world: options of `WorldConfig`; seed: of the scenes.

    Arms: `Vary(name, graph="truth" | "expert" | "shuffled labels", answers="own" | "frequent")`: questions are made from the
    world's own graph, from the expert's, or from the expert's with the labels of each picture in another order; each is answered
    from the graph, or by what is most often the answer of its program.
    Metrics: right (share of the questions whose answer the checker finds right and the only one); questions (of a picture).
    """

    name: ClassVar[str] = "generated questions"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "image"
    looks: ClassVar[tuple[int, ...]] = (60, 150, 400)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)

    part: str = "provision"
    programs: tuple[str, ...]
    model: str = "object-expert"
    world: Mapping[str, Any] = field(default_factory=lambda: {"kinds": {"scene": 1.0}, "things": (2, 6)})
    seed: int = 0

    def models(self) -> tuple[str, ...]:
        """The expert."""
        return (self.model,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """Scenes first .. first + count - 1 of the seed."""
        settings = chosen(arm, graph=GRAPHS, answers=("own", "frequent"))
        how = settings["graph"]
        pictures = self._pictures(first, count)
        if how != "truth":
            from tessera.data.scene_graph import of_expert

            expert, _ = lab.reference(self.model)
            pictures = [replace(p, graph=of_expert(expert, p.picture())) for p in pictures]
        pictures = mislabelled(pictures) if how == "shuffled labels" else pictures
        return self._measured(pictures, frequent=settings["answers"] == "frequent")

    def _pictures(self, first: int, count: int) -> list[Annotated]:
        from tessera.data.scene_graph import of_samples
        from tessera.world import World

        world = World(**{"split": "test", **self.world})
        return of_samples(world[APART * self.seed + first + i] for i in range(count))

    def _measured(self, pictures: Sequence[Annotated], frequent: bool = False) -> Outcomes:
        import numpy as np

        target = registry.get("engines", self.part).target
        engine = target(target.Config(single=self.programs, several=("none",), choices=0.0))
        place = {picture.name: number for number, picture in enumerate(pictures)}
        right, asked = np.zeros(len(pictures)), np.zeros(len(pictures))
        made = list(engine.instructions(pictures))
        for instruction in most_frequent(made) if frequent else made:
            number = place[instruction.pictures[0].name]
            asked[number] += 1
            right[number] += not wrong(self.part, instruction)
        return Outcomes({"right": (right, asked), "questions": (asked, np.ones(len(pictures)))})

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Questions from the graphs of eight scenes, true and mislabelled."""
        small = cls(programs=("relation", "head_relation", "leftmost_object", "bottommost_object"))
        pictures = small._pictures(0, 8)
        found: dict[str, list[float] | str] = {}
        for name, given in (("truth", pictures), ("shuffled labels", mislabelled(pictures))):
            for metric, (totals, counts) in small._measured(given).metrics.items():
                found[f"{name}: {metric}"] = [*totals.tolist(), *counts.tolist()]
        found["most frequent: right"] = small._measured(pictures, frequent=True).of("right")[0].tolist()
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineData(Protocol):
    """A reference model learns on, with half of its pictures bearing the engine's questions, and is asked the engine's held-out
    phrasings about other scenes.

    part: of socket `engines`; programs: that are measured (trained on together, picture by picture); model: what learns on;
    pictures, most: of the training, and questions of a picture at most; steps, images: of the training, images a step; asked:
    test scenes; world: options of `WorldConfig`.

    Arms: `Vary(name, data="base" | "engine" | "shuffled")`: all pictures bear questions of the world's; every second one the
    engine's; every second one these with the answers of other questions of the same program. The pictures and their order are the
    same in all arms.
    Metrics: accuracy (questions of the programs, all tokens right under teacher forcing), base accuracy (the world's questions).
    """

    name: ClassVar[str] = "engine data"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)

    part: str = "provision"
    programs: tuple[str, ...]
    model: str = "nano"
    pictures: int = 160
    most: int = 6
    steps: int = 30
    images: int = 4
    asked: int = 60
    world: Mapping[str, Any] = field(default_factory=lambda: {"kinds": {"scene": 1.0}, "things": (2, 5)})

    def models(self) -> tuple[str, ...]:
        """What learns on."""
        return (self.model,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """Seeds first .. first + count - 1."""
        from tessera.lab.conversations import conversations, trained_on
        from tessera.lab.scenes import accuracy

        model, processor = lab.reference(self.model)
        how = chosen(arm, data=DATA)["data"]
        found: dict[str, list[float]] = {}
        for seed in range(first, first + count):
            pool = conversations(model, processor, self._train_data(how, seed))
            learned, _ = trained_on(lab, self.model, pool, seed=seed, steps=self.steps, images=self.images)
            for name, asked in self._tests(seed).items():
                test = conversations(model, processor, asked)
                found.setdefault(name, []).append(accuracy(learned, processor, test, "own", alone=False))
        return per_seed(found)

    def _train_data(self, how: str, seed: int = 0) -> list[About]:
        from tessera.data.scene_graph import of_samples
        from tessera.world import World

        world = World(**{"split": "train", **self.world})
        samples = [world[APART * seed + i] for i in range(self.pictures)]
        base = {sample.index: _base(sample, self.most) for sample in samples}
        if how != "base":
            target = registry.get("engines", self.part).target
            made = list(target(target.Config(several=("none",))).instructions(of_samples(samples[1::2])))
            base |= _about(reanswered(made) if how == "shuffled" else made, self.most)
        return [(sample.images()[0], base[sample.index]) for sample in samples]

    def _tests(self, seed: int = 0) -> dict[str, list[About]]:
        from tessera.data.scene_graph import of_samples
        from tessera.world import World

        world = World(**{"split": "test", **self.world})
        samples = [world[APART * seed + i] for i in range(self.asked)]
        target = registry.get("engines", self.part).target
        engine = target(target.Config(single=self.programs, several=("none",), phrasing="held-out"))
        turns = _about(list(engine.instructions(of_samples(samples))), self.most)
        return {
            "accuracy": [(sample.images()[0], turns.get(sample.index, [])) for sample in samples],
            "base accuracy": [(sample.images()[0], _base(sample, self.most)) for sample in samples],
        }

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Training data and questions of every arm, and the loss of a tiny random model on it."""
        from tessera.lab.conversations import conversations
        from tessera.lab.protocols.tiny import tiny_model
        from tessera.lab.scenes import batch

        world = {"kinds": {"scene": 1.0}, "things": (2, 5), "width": 64, "height": 64}
        small, found = cls(programs=("count_object", "relation"), pictures=4, asked=3, world=world), dict[str, Any]()
        model, processor = tiny_model()
        for how in DATA:
            train_data = small._train_data(how)
            found[how] = " | ".join(f"{q} {a}" for _, turns in train_data for q, a in turns)
            pool = conversations(model, processor, train_data)
            found[f"{how}: loss"] = [float(model(**batch(pool, processor, pool.asked, alone=False)).loss.detach())]
        for name, asked in small._tests().items():
            found[name] = " | ".join(f"{q} {a}" for _, turns in asked for q, a in turns)
        return found


def wrong(part: str, instruction: Instruction) -> bool:
    """Whether the engine's own checker, which knows the world's truth, finds fault with an answer."""
    checker = importlib.import_module(f"{part_module(registry.get('engines', part)).__name__}.checker")
    return bool(checker.wrong_with(instruction))


def mislabelled(pictures: Sequence[Annotated]) -> list[Annotated]:
    """The same graphs with the labels of each in random order."""
    from tessera.world.rng import Rng

    made = []
    for picture in pictures:
        labels = Rng("labels", picture.name).shuffled(picture.graph.labels())
        nodes = tuple(replace(n, label=label) for n, label in zip(picture.graph.nodes, labels, strict=True))
        made.append(replace(picture, graph=replace(picture.graph, nodes=nodes)))
    return made


def most_frequent(instructions: Sequence[Instruction]) -> list[Instruction]:
    """The same questions, each with the answer that most questions of its program have, of equally frequent ones the first."""
    given: dict[str, Counter[str]] = {}
    for instruction in instructions:
        given.setdefault(instruction.question.type, Counter())[instruction.question.answer] += 1
    usual = {program: answers.most_common(1)[0][0] for program, answers in given.items()}
    return [replace(i, question=replace(i.question, answer=usual[i.question.type])) for i in instructions]


def reanswered(instructions: Sequence[Instruction]) -> list[Instruction]:
    """The same questions, each with the answer to another one of its program and form, or a random one of its own options."""
    from tessera.world.rng import Rng

    groups: dict[tuple[str, str], list[int]] = {}
    for at, instruction in enumerate(instructions):
        groups.setdefault((instruction.question.type, instruction.question.form), []).append(at)
    made = list(instructions)
    for members in groups.values():
        others = Rng("shuffled answers", members[0]).shuffled(members)
        for at, other in zip(members, others, strict=True):
            own, answer = instructions[at].question, instructions[other].question.answer
            if own.choices and answer not in own.choices:
                answer = Rng("shuffled answers", at).choice(own.choices)
            made[at] = replace(instructions[at], question=replace(own, answer=answer))
    return made


def _base(sample: Any, most: int) -> list[tuple[str, str]]:
    questions = sample.rng("engine data").shuffled(sample.questions(BASE))
    return [(q.text, q.answer) for q in questions[:most]]


def _about(instructions: Sequence[Instruction], most: int) -> dict[int, list[tuple[str, str]]]:
    """At most `most` questions, drawn at random, of every sample by its number."""
    from tessera.world.rng import Rng

    found: dict[int, list[tuple[str, str]]] = {}
    for instruction in instructions:
        source = instruction.pictures[0].source
        assert source is not None
        found.setdefault(source[0].index, []).append((instruction.question.text, instruction.question.answer))
    return {index: Rng("engine data", index).shuffled(turns)[:most] for index, turns in found.items()}
