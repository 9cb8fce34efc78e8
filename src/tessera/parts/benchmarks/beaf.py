"""BEAF asks the same yes/no questions before and after one object is removed, and counts how the answers change.

Source: Moon Ye-Bin et al., "BEAF: Observing BEfore-AFter Changes to Evaluate Hallucination in Vision-language Models", ECCV
2024, arXiv:2407.13442. For a question about the removed object a pair of outcomes (before, after) is one of four: True
Understanding (right, right), Ignorance (wrong, wrong), Stubbornness towards yes (yes both times) or towards no (no both times);
they add up to one. Indecision is the share of questions about what was not touched whose answer changes. Accuracy, precision,
recall and F1 are over all questions, and the harmonic mean of TU and 1 - ID sums up. A model can have a high accuracy with a
poor TU: it says what is usual.

Deviations: objects are removed from the world's scenes by drawing them without it, so that there is nothing an inpainting model
left behind and the other objects are where they were. An answer that says neither yes nor no counts as the wrong one, where the
published script takes over the previous question's answer. Numbers are shares with intervals, by bootstrap over original
scenes, not percentages. Absent objects are asked about too, hard ones (of a category that is there) first.

Shapes: no tensors; an item is one picture with its questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tessera.config import config
from tessera.errors import UserError
from tessera.evaluation.benchmark import Benchmark, Scores, identified, share
from tessera.evaluation.intervals import Interval
from tessera.evaluation.items import Item
from tessera.registry import part
from tessera.world import World, WorldConfig
from tessera.world.concepts import concepts
from tessera.world.dataset import Sample
from tessera.world.questions import world_lexicon
from tessera.world.questions.phrasing import article
from tessera.world.rng import Rng
from tessera.world.scene import Question

Outcome = Literal["TP", "TN", "FP", "FN"]
CHANGES = {("TP", "TN"): "TU", ("FN", "FP"): "IG", ("TP", "FP"): "SBp", ("FN", "TN"): "SBn"}


@dataclass(frozen=True, slots=True)
class Asked:
    """One question with its outcome: which scene it belongs to, what was removed (-1: nothing yet), which concept it asks
    about."""

    scene: int
    removed: int
    concept: int
    outcome: Outcome


def outcome(answer: str, truth: str) -> Outcome:
    """What an answer is, given the truth "yes" or "no": yes if it says yes anywhere, else no if it says no, else wrong."""
    lower = answer.lower()
    says = "yes" if "yes" in lower else "no" if "no" in lower else "no" if truth == "yes" else "yes"
    if says == "yes":
        return "TP" if truth == "yes" else "FP"
    return "TN" if truth == "no" else "FN"


def numbers(asked: Sequence[Asked]) -> dict[str, Interval]:
    """All of BEAF's numbers as shares in 0..1; see the module's description for their names.

    Raises `UserError` for a question about a changed picture that was not asked about the original.
    """
    before = {(a.scene, a.concept): a.outcome for a in asked if a.removed < 0}
    scenes = sorted({a.scene for a in asked})
    found: dict[str, dict[int, list[int]]] = {
        name: {s: [] for s in scenes} for name in ("TU", "IG", "SBp", "SBn", "ID", "accuracy", "precision", "recall")
    }
    for a in asked:
        right = int(a.outcome in ("TP", "TN"))
        found["accuracy"][a.scene].append(right)
        if a.outcome in ("TP", "FP"):
            found["precision"][a.scene].append(right)
        if a.outcome in ("TP", "FN"):
            found["recall"][a.scene].append(right)
        if a.removed < 0:
            continue
        if (a.scene, a.concept) not in before:
            raise UserError(f"scene {a.scene}: a question was asked after a removal but not before it; both are needed.")
        first = before[a.scene, a.concept]
        if a.concept == a.removed:
            for name in ("TU", "IG", "SBp", "SBn"):
                found[name][a.scene].append(int(CHANGES.get((first, a.outcome)) == name))
        else:
            found["ID"][a.scene].append(int(first[0] != a.outcome[0]))
    shares = {name: share([by_scene[s] for s in scenes]) for name, by_scene in found.items()}
    shares["F1"] = _harmonic(shares["precision"], shares["recall"])
    decided = shares["ID"]
    shares["F1 of TU and ID"] = _harmonic(shares["TU"], Interval(1 - decided.value, 1 - decided.high, 1 - decided.low))
    return shares


def _harmonic(a: Interval, b: Interval) -> Interval:
    """The harmonic mean, with the interval that both ends together allow."""

    def mean(x: float, y: float) -> float:
        return 2 * x * y / (x + y) if x + y else 0.0

    return Interval(mean(a.value, b.value), mean(a.low, b.low), mean(a.high, b.high))


@part("beaf", socket="benchmarks", catalog=147)
class BEAF(Benchmark):
    """Existence questions about scenes with and without each of their objects."""

    @config
    class Config:
        """scenes: original scenes; removals: most changed pictures of one scene; absent: questions about objects that were never
        there, per picture. world: where the scenes come from, each with two or more things."""

        scenes: int = 100
        removals: int = 4
        absent: int = 5
        world: WorldConfig | None = None

        def validate_counts(self) -> None:
            if self.scenes < 1 or self.removals < 1 or self.absent < 0:
                raise ValueError("scenes and removals are at least 1, absent at least 0.")

    max_new_tokens = 8

    def __init__(self, config: Config) -> None:
        self.config = config
        world = config.world or WorldConfig(split="test", kinds={"scene": 1.0}, things=(2, 6))
        self.world = World(replace(world, kinds={"scene": 1.0}))

    def items(self) -> list[Item]:
        """Per scene the original picture, then one for every object removed, all with the same questions."""
        made: list[Item] = []
        index = 0
        for _ in range(self.config.scenes):
            found: list[Item] = []
            while not found:
                if index > 100 * self.config.scenes:
                    raise UserError("the world has too few scenes with an object to remove; allow two or more things.")
                found = self._about(self.world.sample(index))
                index += 1
            made += found
        return made

    def score(self, items: Sequence[Item], said: Sequence[Sequence[str]]) -> Scores:
        """See `numbers`."""
        asked = [
            Asked(int(str(q.asked("scene"))), int(str(q.asked("removed"))), int(str(q.asked("concept"))), outcome(text, q.answer))
            for item, texts in zip(items, said, strict=True)
            for q, text in zip(item.questions, texts, strict=True)
        ]
        right = [
            [int(outcome(text, q.answer) in ("TP", "TN")) for q, text in zip(item.questions, texts, strict=True)]
            for item, texts in zip(items, said, strict=True)
        ]
        return Scores(numbers=numbers(asked), n=len(asked), items=identified(items), outcomes=right)

    def _about(self, sample: Sample) -> list[Item]:
        """The items of one scene; none if no object is the only one of its name."""
        scene = sample.frames[0]
        clashes = world_lexicon().clashes
        kinds = [t.concept for t in scene.things]
        truth = {t.concept: t for t in sample.truth()}
        sure = [
            c
            for c in dict.fromkeys(kinds)
            if kinds.count(c) == 1 and truth[c].visible >= 0.5 and clashes.get(c, frozenset()).isdisjoint(kinds)
        ]
        rng = Rng("beaf", self.world.config.split, self.world.config.seed, sample.index)
        removed = rng.pick(sure, self.config.removals) if len(kinds) > 1 else []
        if not removed:
            return []
        table, near = concepts(), {concepts()[c].category for c in kinds}
        unrelated = [c for c in sample.pool if c not in kinds and clashes.get(c, frozenset()).isdisjoint(kinds)]
        hard = rng.pick([c for c in unrelated if table[c].category in near], self.config.absent)
        asked = [*sure, *hard, *rng.pick([c for c in unrelated if c not in hard], self.config.absent - len(hard))]
        made = []
        for gone in (-1, *removed):
            things = tuple(t for t in scene.things if t.concept != gone)
            left = {t.concept for t in things}
            pictured = Sample(sample.config, sample.index, "scene", (replace(scene, things=things),), (), sample.pool)
            questions = tuple(self._question(sample.index, gone, c, c in left) for c in asked)
            made.append(Item(pictured, questions))
        return made

    def _question(self, scene: int, removed: int, concept: int, there: bool) -> Question:
        name = concepts()[concept].name
        return Question(
            type="existence",
            form="yesno",
            text=f"Is there {article(name)} {name}?",
            answer="yes" if there else "no",
            query=(("op", "exists"), ("concept", concept), ("scene", scene), ("removed", removed)),
        )
