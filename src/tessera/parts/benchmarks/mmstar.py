"""MMStar keeps only questions that need the picture, and says how much a score owes to it and how much to leaked data.

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
from typing import TYPE_CHECKING, Any

from tessera.config import config
from tessera.errors import UserError
from tessera.evaluation.answering import Generates, Row
from tessera.evaluation.benchmark import Benchmark, Scores, identified, share
from tessera.evaluation.intervals import Interval, paired_bootstrap
from tessera.evaluation.items import Item
from tessera.evaluation.scoring import normalise
from tessera.lab.claim import Finding, claim
from tessera.registry import part
from tessera.world import World, WorldConfig
from tessera.world.rng import Rng
from tessera.world.scene import Question

if TYPE_CHECKING:
    from tessera.data.records import Record
    from tessera.lab.lab import Lab

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


# Claims


def planted(items: Sequence[Item], letters: bool = False) -> list[Item]:
    """Questions that need no picture, one for each of the items' pictures: a thing's kind, or what the question itself says."""
    from tessera.world.concepts import concepts
    from tessera.world.questions.phrasing import article

    table = concepts()
    made = []
    for number, item in enumerate(items):
        rng = Rng("planted", item.sample.config.split, item.sample.index, number)
        names = [table[c] for c in rng.pick(item.sample.pool, 4)]
        kinds = list(dict.fromkeys(c.category for c in names))
        if rng.chance(0.5) and len(kinds) == 4:
            text, answer, options = f"What kind of thing is {article(names[0].name)} {names[0].name}?", kinds[0], kinds
        else:
            a, b = names[0].name, names[1].name
            side = rng.choice(("left of", "right of", "above", "below"))
            text, answer, options = f"The {a} is {side} the {b}. What is {side} the {b}?", a, [c.name for c in names]
        question = Question(type="planted", form="choice", text=text, answer=answer, query=(("op", "planted"),))
        made.append(Item(item.sample, (offered(question, rng.shuffled(options), letters),)))
    return made


def _records(items: Sequence[Item], pictures: bool) -> list[Record]:
    from tessera.data.engine import HELD_BACK, conversation

    made = []
    for item in items:
        if item.sample.config.split in HELD_BACK:
            raise UserError("questions of the test split train nothing.")
        images = item.sample.images() if pictures else []
        for q in item.questions:
            made.append(conversation(images, q.text, q.answer))
    return made


@claim(
    "answers are read by the published rules, and both metrics are their formulas",
    kind="exact",
    paper="section 4.3, equations 1 and 2",
)
def formulas(lab: Lab) -> Finding:
    """Letters in many wordings; gain and leakage of scripted answers; options turned all the way round."""
    said = {"A": "A", "b.": "B", "(C) dog": "C", "Option d": "D", "The answer is a": "A", "dog": "D", "I think B": "", "": ""}
    items = MMStar(MMStar.Config(per_axis=1, letters=True)).items()
    bench = MMStar(MMStar.Config(letters=True), items)
    truth = [[i.questions[0].answer] for i in items]
    half = [t if n % 2 else ["-"] for n, t in enumerate(truth)]
    full, some, none = (bench.score(items, s) for s in (truth, half, [["-"]] * len(items)))
    whole = [turned(i.questions[0], 4, True) == i.questions[0] for i in items]
    return Finding(
        checks={
            "letters are read": all(read_letter(text) == letter for text, letter in said.items()),
            "an oracle scores 1": full["score"] == 1,
            "the gain is the difference": abs(gain(full, some).value - (1 - some["score"])) < 1e-12,
            "a model that is as good blind has no gain": gain(some, some).value == 0,
            "the leakage is the difference, never below 0": abs(leakage(some, none).value - some["score"]) < 1e-12
            and leakage(none, some).value == 0,
            "options turned all the way round are as before": all(whole),
        },
        measured={"questions": len(items)},
    )


@claim("blind judges drop what needs no picture and keep what does", kind="effect", paper="section 3.1, table 1")
def drops_planted(lab: Lab) -> Finding:
    """40 % planted questions among test questions; the judges are the reference model trained on with text of the train split
    alone, three seeds; a judge that guesses as a control. The judges' steps were raised once, from 80, after a run in which they
    had not learned what was planted: 25 % were dropped."""
    from tessera.evaluation.answering import Answer
    from tessera.lab.instruments.further import taught

    options = WorldConfig(split="train", kinds={"scene": 0.7, "text": 0.1, "chart": 0.2}, things=(2, 6))
    lesson = MMStar(MMStar.Config(per_axis=30, world=options)).items()
    text = _records([*lesson, *planted(lesson * 2)], pictures=False)
    judges = [taught(lab, text, seed=seed, steps=240) for seed in lab.seeds]
    visual = MMStar(MMStar.Config(per_axis=12)).items()
    false = planted(visual)[: round(len(visual) * 2 / 3)]
    bench = MMStar(MMStar.Config(), [*visual, *false])
    hits = bench.hits(judges)

    class Guess:
        """Names one of the options by lot."""

        def answer_batch(self, rows: Sequence[Any], max_new_tokens: int) -> list[list[Answer]]:
            rng = Rng("guess", len(rows))
            return [[Answer(rng.choice(q.split(" Choose: ")[1].rstrip(".").split(", "))) for q in qs] for _, qs in rows]

    guessed = bench.hits([], [Guess()])
    cut = bench.config.most
    n = len(visual)
    dropped = sum(h > cut for h in hits[n:]) / len(false)
    lost = sum(h > cut for h in hits[:n]) / n
    after = bench.select(judges)
    before_blind = sum(hits) / len(hits)
    after_blind = sum(h for h in hits if h <= cut) / len(after.items())
    return Finding(
        checks={
            "at least 95 % of the planted questions are dropped": dropped >= 0.95,
            "at most 5 % of the visual ones": lost <= 0.05,
            "a guessing judge drops less than half of the planted ones": sum(h > cut for h in guessed[n:]) / len(false) < 0.5,
        },
        measured={
            "planted dropped": dropped,
            "visual dropped": lost,
            "blind accuracy before": before_blind,
            "after": after_blind,
        },
        control={"planted dropped by guessing": sum(h > cut for h in guessed[n:]) / len(false)},
        seeds=lab.seeds,
        note="Visual questions whose answer is the usual one are dropped rightly; they are not planted, and count as lost here.",
    )


@claim(
    "gain and leakage tell a seeing model, a blind one, and one that saw the test", kind="effect", paper="section 4.3, table 6"
)
def tells_leaks(lab: Lab) -> Finding:
    """Val questions leaked into 40 steps of training, 30 or 90 of 90; a twin trained on as many train questions; three seeds."""
    from tessera.lab.instruments.further import taught
    from tessera.lab.lab import mean, spread

    kinds = {"kinds": {"scene": 0.7, "text": 0.1, "chart": 0.2}, "things": (2, 6)}
    bench = MMStar(MMStar.Config(per_axis=5, world=lab.world(split="val", **kinds).config))
    clean = MMStar(MMStar.Config(per_axis=5, world=lab.world(split="train", **kinds).config)).items()
    items = Rng("leak").shuffled(bench.items())
    model, processor = lab.reference("nano")
    seen, blind = bench.run(model, processor), bench.run(model, processor, blind=True)
    found: dict[str, list[float]] = {"30 leaked": [], "all leaked": [], "clean": []}
    for seed in lab.seeds:
        for name, chosen in (("30 leaked", items[:30]), ("all leaked", items), ("clean", clean)):
            tuned = taught(lab, _records(chosen, pictures=True), seed=seed, steps=40)
            found[name].append(leakage(bench.run(*tuned, blind=True), blind).value)
    few, all_, none = (mean(found[k]) for k in ("30 leaked", "all leaked", "clean"))
    gained = gain(seen, blind)
    return Finding(
        checks={
            "the gain of the seeing model is surely above 0": gained.low > 0,
            "leakage rises with what was leaked": all_ > few > 0,
            "the clean twin leaks at most 5 points, and less than either": none <= 0.05 and none < min(few, all_),
        },
        measured={"gain": gained.value, "ML, 30 leaked": few, "ML, all leaked": all_},
        baseline={"S_v": seen["score"], "S_wv": blind["score"]},
        control={"ML, clean twin": none, "gain of the blind model": gain(blind, blind).value},
        spread={f"ML, {k}": spread(v) for k, v in found.items()},
        seeds=lab.seeds,
        note="A small model asked blind may learn only the usual answers; then a clean twin seems to leak as well.",
    )
