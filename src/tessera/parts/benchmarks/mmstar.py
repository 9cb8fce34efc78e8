"""MMStar keeps only questions that need the image, and measures how much of a score is due to it and how much to leaked data.

Source: Chen et al., "Are We on the Right Way for Evaluating Large Vision-Language Models?", NeurIPS 2024, arXiv:2403.20330.
Candidates, multiple-choice questions with four options, are put to several language models without the picture; what most of
them answer anyway is dropped, and what stays is balanced over 6 core capabilities with 3 axes each. For a model with score S_v,
without pictures S_wv, and its language model alone S_t, the multi-modal gain is S_v - S_wv and the multi-modal leakage max(0,
S_wv - S_t): what it knows blind beyond what its language model knew can only have come from training on the questions.

Deviations: candidates are the world's questions, so the capability "science & technology" is taken by reading. The people who
looked at each question in the paper are replaced by the world, which knows that its questions have one answer. Every judge is
asked several times with the options in turned order, so that one who always names the same place hits by chance only; the
published filter counts models, here it counts trials. Judges answer without examples unless they bring their own. For models
trained on the world's form of choices options are words; `letters` asks in the published form, and reads answers by the
published rules.

Shapes: no tensors; an item is one picture with one question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tessera.config import config
from tessera.errors import UserError
from tessera.evaluation.answering import Generates, Row
from tessera.evaluation.benchmark import Benchmark, Scores, identified, share
from tessera.evaluation.intervals import Interval, paired_bootstrap
from tessera.evaluation.items import Item
from tessera.evaluation.scoring import normalise
from tessera.registry import part
from tessera.world import World, WorldConfig
from tessera.world.rng import Rng
from tessera.world.scene import Question

CAPABILITIES = {
    "coarse perception": ("background", "total", "category_largest"),
    "fine-grained perception": ("where", "at_box", "tint"),
    "instance reasoning": ("beside", "nearest", "largest"),
    "logical reasoning": ("count_beside", "farthest", "tint_nearest"),
    "reading": ("read", "value", "highest"),
    "math": ("count", "count_category", "sum"),
}
"""Core capability -> its axes, named by the op of the world's queries."""
_PREFIXES = ("", "(", "option ", "the answer is ")


def read_letter(said: str) -> str:
    """The option that an answer names, "A" to "D", by the published rules: it begins with the letter, "(", "option " or "the
    answer is ", then the letter. "" if none of them fits."""
    text = said.lower().strip().replace("\n", " ")
    for prefix in _PREFIXES:
        rest = text[len(prefix) :]
        if text.startswith(prefix) and rest[:1] in ("a", "b", "c", "d"):
            return rest[0].upper()
    return ""


def as_choice(question: Question, rng: Rng, options: int, letters: bool, axis: str) -> Question | None:
    """The question with its answer among `options` in random order; None if it has too few wrong answers."""
    wrong = [w for w in dict.fromkeys((*question.distractors, *question.choices)) if w != question.answer][: options - 1]
    if len(wrong) < options - 1:
        return None
    text = question.text.split(" Choose: ")[0]
    return offered(replace(question, type=axis, text=text), rng.shuffled([question.answer, *wrong]), letters)


def offered(question: Question, options: Sequence[str], letters: bool) -> Question:
    """The question, its text without options, offering these."""
    if not letters:
        text = f"{question.text} Choose: {', '.join(options)}."
        return replace(question, form="choice", text=text, choices=tuple(options))
    shown = ", ".join(f"{chr(65 + i)}: {o}" for i, o in enumerate(options))
    return replace(
        question,
        form="choice",
        text=f"{question.text}\nOptions: {shown}\nAnswer with the letter of the option.",
        answer=chr(65 + list(options).index(question.answer)),
        choices=tuple(options),
    )


def turned(question: Question, by: int, letters: bool) -> Question:
    """The same question with its options moved on by some places."""
    cut = by % len(question.choices)
    plain = question.text.split("\nOptions: " if letters else " Choose: ")[0]
    answer = question.choices[ord(question.answer) - 65] if letters else question.answer
    return offered(replace(question, text=plain, answer=answer), (*question.choices[cut:], *question.choices[:cut]), letters)


@part("mmstar", socket="benchmarks", catalog=142)
class MMStar(Benchmark):
    """Multiple choice that cannot be answered blind, over 6 capabilities with 3 axes each."""

    @config
    class Config:
        """per_axis: candidates of each axis. most: share of blind trials that may be right for a question to stay. trials: orders
        of the options that every judge is asked, 1 to `options`. letters: options and answers as letters. world, seed: where
        candidates come from."""

        per_axis: int = 30
        options: int = 4
        most: float = 0.5
        trials: int = 4
        letters: bool = False
        seed: int = 0
        world: WorldConfig | None = None

        def validate_ranges(self) -> None:
            if self.per_axis < 1 or not 2 <= self.options <= 4:
                raise ValueError("per_axis is at least 1 and options 2 to 4.")
            if not 1 <= self.trials <= self.options or not 0 <= self.most < 1:
                raise ValueError("trials is 1 to options, and most at least 0 and below 1.")

    def __init__(self, config: Config, items: Sequence[Item] | None = None) -> None:
        """items: the questions themselves, one per item and each with options; drawn from the world if none are given."""
        self.config = config
        self._items = None if items is None else list(items)

    def items(self) -> list[Item]:
        """All candidates, or what is left of them after `select`."""
        if self._items is None:
            self._items = self._draw()
        return self._items

    def select(self, judges: Sequence[tuple[Any, Any]], answers: Sequence[Generates] = ()) -> MMStar:
        """The benchmark without what the judges, models with their processors, answer blind; `answers`: judges that are no
        models.

        Raises `UserError` without judges, or if nothing stays.
        """
        hits = self.hits(judges, answers)
        kept = [item for item, hit in zip(self.items(), hits, strict=True) if hit <= self.config.most]
        if not kept:
            raise UserError("the judges answer every question blind, so none is left; take harder candidates or a higher `most`.")
        return MMStar(self.config, kept)

    def hits(self, judges: Sequence[tuple[Any, Any]], answers: Sequence[Generates] = ()) -> list[float]:
        """For each item the share of blind trials, judges times orders of the options, that are right."""
        if not judges and not answers:
            raise UserError("a selection needs at least one judge that answers without pictures.")
        right = [0] * len(self.items())
        for by in range(self.config.trials):
            asked = MMStar(
                self.config,
                [Item(i.sample, (turned(i.questions[0], by, self.config.letters),)) for i in self.items()],
            )
            found = [asked.run(*judge, blind=True).outcomes for judge in judges]
            for judge in answers:
                rows: list[Row] = [([], [i.questions[0].text]) for i in asked.items()]
                said = [[a.text for a in row] for row in judge.answer_batch(rows, self.max_new_tokens)]
                found.append(asked.score(asked.items(), said).outcomes)
            right = [n + sum(outcomes[at][0] for outcomes in found) for at, n in enumerate(right)]
        return [n / ((len(judges) + len(answers)) * self.config.trials) for n in right]

    def balanced(self, per_capability: int) -> MMStar:
        """As many questions of every capability, its axes in turn; fewer where there are fewer."""
        kept: list[Item] = []
        for axes in CAPABILITIES.values():
            queues = [[i for i in self.items() if i.questions[0].type == axis] for axis in axes]
            mixed = [q[at] for at in range(max(map(len, queues), default=0)) for q in queues if at < len(q)]
            kept += mixed[:per_capability]
        return MMStar(self.config, kept)

    def score(self, items: Sequence[Item], said: Sequence[Sequence[str]]) -> Scores:
        """ "score" over all questions, and one number for each capability and axis ("math", "math/count")."""
        right = [[self._right(i.questions[0], s[0])] for i, s in zip(items, said, strict=True)]
        numbers = {"score": share(right)}
        for capability, axes in CAPABILITIES.items():
            for name, members in ((capability, axes), *((f"{capability}/{a}", (a,)) for a in axes)):
                own = [r for i, r in zip(items, right, strict=True) if i.questions[0].type in members]
                if own:
                    numbers[name] = share(own)
        return Scores(numbers=numbers, n=len(right), items=identified(items), outcomes=right)

    def _right(self, question: Question, said: str) -> int:
        if self.config.letters:
            return int(read_letter(said) == question.answer)
        return int(normalise(said) == normalise(question.answer))

    def _draw(self) -> list[Item]:
        c = self.config
        world = World(c.world or WorldConfig(split="test", kinds={"scene": 0.7, "text": 0.1, "chart": 0.2}, things=(2, 6)))
        wanted = {axis: c.per_axis for axes in CAPABILITIES.values() for axis in axes if world.config.kinds.get(_kind(axis))}
        items: list[Item] = []
        for index in range(c.seed * 1_000_000, c.seed * 1_000_000 + 60 * c.per_axis + 400):
            kinds = sorted({_kind(axis) for axis, n in wanted.items() if n})
            if not kinds:
                break
            rng = Rng("mmstar", c.seed, index)
            sample = world.sample(index, rng.choice(kinds))
            fits = [q for q in rng.shuffled(sample.questions()) if wanted.get(str(q.asked("op")), 0)]
            for question in fits[:2]:  # several axes of one picture would stand or fall together
                axis = str(question.asked("op"))
                made = as_choice(question, rng, c.options, c.letters, axis)
                if made is not None and wanted[axis]:
                    wanted[axis] -= 1
                    items.append(Item(sample, (made,)))
        return items


def _kind(axis: str) -> str:
    """The kind of sample that an axis is asked about."""
    return "text" if axis == "read" else "chart" if axis in ("value", "highest", "sum") else "scene"


def gain(seen: Scores, blind: Scores) -> Interval:
    """Multi-modal gain S_v - S_wv with its paired interval. Raises `UserError` for scores of different questions."""
    _same(seen, blind)
    return paired_bootstrap(seen.outcomes, blind.outcomes)


def leakage(blind: Scores, backbone: Scores) -> Interval:
    """Multi-modal leakage max(0, S_wv - S_t) with its interval. Raises `UserError` for scores of different questions."""
    _same(blind, backbone)
    found = paired_bootstrap(blind.outcomes, backbone.outcomes)
    return Interval(max(0.0, found.value), max(0.0, found.low), max(0.0, found.high))


def _same(first: Scores, second: Scores) -> None:
    if first.items != second.items:
        raise UserError("the two scores are of different questions; run the same benchmark for both.")
