"""ProVision makes instruction data with programs that read scene graphs.

Source: Zhang et al., "ProVision: Programmatically Scaling Vision-centric Instruction Data for Multimodal Language Models",
2024, arXiv:2412.07012. A picture is described by a scene graph: things with labels, boxes, attributes, depth and masks, and
relations between them, from people's annotation or from vision models. 24 programs ask about one picture, 14 about several;
each finds what can be asked and has one answer, draws wrong options, and fills one of its phrasings. The answers are as true as
the graph, cost nothing, and every one can be checked.

Deviations: the phrasings are ours, in the world's words, and one of each program's is held out for measuring. A relation that
is too near to call, an unknown attribute, or a name that might mean two things is never asked about. The published point
programs call the smaller depth nearer, the object programs the larger; here the larger is nearer throughout, and a point has
the depth of the thing it lies on. Counts of answers, by which rare ones are preferred, are kept while generating instead of in
a pass before. The programs that compare amounts of depth need a graph that has them, which the world's overlaps do not give.
Boxes and points are hundredths like the world's unless `coordinates="decimal"`. Attributes come from the world's truth or not
at all: the attribute and relation models of the paper are left to whoever has them; `tessera.data.scene_graph.of_expert` makes
labels, boxes and spatial relations with an expert.

Shapes: a graph's masks are [n, H, W] for n things; everything else is plain data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from tessera.config import config
from tessera.data.engine import Engine, Instruction
from tessera.data.scene_graph import Annotated
from tessera.errors import unknown
from tessera.lab.claim import Finding, claim
from tessera.parts.engines.provision.draft import Context, Draft, kind_values
from tessera.parts.engines.provision.several import Corpus, multi_programs
from tessera.parts.engines.provision.single import programs
from tessera.registry import part
from tessera.world.rng import Rng
from tessera.world.scene import Question

if TYPE_CHECKING:
    from tessera.evaluation.items import Item
    from tessera.lab.lab import Lab

SINGLE = tuple(p.name for p in programs({}))
SEVERAL = tuple(p.name for p in multi_programs())


@part("provision", socket="engines", catalog=363)
class ProVision(Engine):
    """Questions and answers from scene graphs."""

    @config
    class Config:
        """single, several: names of the programs that run (none: all; ("none",) for no program of the sort).
        per_picture: most questions of each program about one picture; multi: questions of each program for several pictures, in
        all; pictures: how many of them one question is about, 2 to 8. choices: share of the questions that offer options, at
        most `options` of them. letters: options are "A. dog" instead of "dog". phrasing: which of a program's phrasings are used.
        depth_gap: least difference in depth that is asked about, where depths come without visible order. seed: of all lots."""

        single: tuple[str, ...] = ()
        several: tuple[str, ...] = ()
        per_picture: int = 1
        multi: int = 100
        pictures: int = 2
        choices: float = 0.5
        options: int = 4
        letters: bool = False
        phrasing: Literal["train", "held-out", "all"] = "train"
        coordinates: Literal["hundredths", "decimal"] = "hundredths"
        depth_gap: float = 0.2
        seed: int = 0

        def validate_ranges(self) -> None:
            if not 0 <= self.choices <= 1:
                raise ValueError(f"choices is a share from 0 to 1, not {self.choices}.")
            if self.options < 2 or not 2 <= self.pictures <= 8 or self.per_picture < 0 or self.multi < 0:
                raise ValueError("options is at least 2, pictures 2 to 8, per_picture and multi at least 0.")

    def __init__(self, config: Config) -> None:
        """Raises `UserError` for a program that does not exist."""
        for names, known in ((config.single, SINGLE), (config.several, SEVERAL)):
            for name in names:
                if name not in known and name != "none":
                    raise unknown("program", name, known)
        self.config = config

    def instructions(self, pictures: Sequence[Annotated]) -> Iterator[Instruction]:
        """Questions about single pictures in their order, then those about several."""
        c = self.config
        values = kind_values(p.graph for p in pictures)
        seen: Counter[tuple[str, str]] = Counter()
        chosen = [p for p in programs(values) if p.name in (c.single or SINGLE)]
        for picture in pictures:
            for program in chosen:
                rng = Rng("provision", c.seed, picture.name, program.name)
                drafts = list(program.make(picture.graph, Context(rng, c.options, c.depth_gap, c.coordinates == "decimal")))
                for draft in _preferred(drafts, c.per_picture, program.name, seen, rng):
                    yield Instruction((picture,), self._question(program.name, program.phrases, draft, rng))
        corpus = Corpus([p.graph for p in pictures])
        for multi in (p for p in multi_programs() if p.name in (c.several or SEVERAL)):
            rng = Rng("provision", c.seed, "several", multi.name)
            made: set[object] = set()
            for _ in range(30 * c.multi if len(corpus.usable) >= c.pictures else 0):
                if len(made) >= c.multi:
                    break
                found = multi.search(corpus, rng, c.pictures, c.options)
                if found is None or (key := (tuple(sorted(found[0])), found[1].query)) in made:
                    continue
                made.add(key)
                shown, draft = found
                yield Instruction(tuple(pictures[i] for i in shown), self._question(multi.name, multi.phrases, draft, rng))

    def _question(self, name: str, phrases: Sequence[str], draft: Draft, rng: Rng) -> Question:
        c = self.config
        usable = phrases[-1:] if c.phrasing == "held-out" else phrases[:-1] if c.phrasing == "train" else phrases
        text = rng.choice(usable).format(**draft.words)
        text = text[:1].upper() + text[1:]
        if not draft.wrong or not rng.chance(c.choices):
            answer = " and ".join(draft.answers)
            return Question(type=name, form="open", text=text, answer=answer, distractors=draft.wrong, query=draft.query)
        right = rng.choice(draft.answers)
        offered = rng.shuffled([right, *draft.wrong[: c.options - 1]])
        shown = [f"{chr(65 + i)}. {o}" for i, o in enumerate(offered)] if c.letters else offered
        return Question(
            type=name,
            form="choice",
            text=f"{text} Choose: {', '.join(shown)}.",
            answer=shown[offered.index(right)],
            choices=tuple(shown),
            distractors=draft.wrong,
            query=draft.query,
        )


def _preferred(drafts: list[Draft], most: int, name: str, seen: Counter[tuple[str, str]], rng: Rng) -> list[Draft]:
    """At most `most` of the drafts; those whose answers were given rarely so far come rather (by the cube of the counts)."""
    chosen: list[Draft] = []
    while drafts and len(chosen) < most:
        weights = [len(d.answers) / sum((1 + seen[name, a]) ** 3 for a in d.answers) for d in drafts]
        draft = rng.weighted(drafts, weights)
        drafts.remove(draft)
        seen.update((name, a) for a in draft.answers)
        chosen.append(draft)
    return chosen


def to_items(instructions: Sequence[Instruction]) -> list[Item]:
    """Instructions about world pictures as items for the evaluation harness, one question each."""
    from tessera.evaluation.items import Item
    from tessera.world.dataset import Sample

    made = []
    for instruction in instructions:
        sources = [p.source for p in instruction.pictures]
        frames = tuple(s[0].frames[s[1]] for s in sources if s is not None)
        first = sources[0]
        assert first is not None and len(frames) == len(sources)
        sample = Sample(first[0].config, first[0].index, "scene" if len(frames) == 1 else "clip", frames, (), first[0].pool)
        made.append(Item(sample, (instruction.question,)))
    return made


# Claims

BASE = ("existence", "position", "attribute", "category", "at", "box")
"""What the training data of the claim asks about without the engine."""
ABILITIES = {
    "count, relation, depth": (
        "count_object", "most_object", "least_object", "count_attribute", "relation", "relation_box", "head_relation",
        "leftmost_object", "rightmost_object", "topmost_object", "bottommost_object", "closer_object", "farther_object",
        "graph_relation",
    ),
    "several pictures": SEVERAL,
}  # fmt: skip


def _wrong(instructions: Sequence[Instruction]) -> int:
    from tessera.parts.engines.provision.checker import wrong_with

    return sum(bool(wrong_with(i)) for i in instructions)


def _swapped(instructions: Sequence[Instruction], seed: int = 0) -> list[Instruction]:
    """The same questions, each with the answer to another one of its program and form."""
    from dataclasses import replace

    groups: dict[tuple[str, str], list[int]] = {}
    for at, i in enumerate(instructions):
        groups.setdefault((i.question.type, i.question.form), []).append(at)
    made = list(instructions)
    for members in groups.values():
        answers = [instructions[m].question for m in Rng("swapped", seed, members[0]).shuffled(members)]
        for m, other in zip(members, answers, strict=True):
            own = instructions[m].question
            options = own.choices or (other.answer,)
            said = other.answer if other.answer in options else Rng("swapped", seed, m).choice(options)
            made[m] = Instruction(instructions[m].pictures, replace(own, answer=said))
    return made


@claim("an independent checker agrees with every program", kind="exact", paper="section 3")
def few_are_right(lab: Lab) -> Finding:
    """All programs on a handful of scenes, against answers worked out by going through all things."""
    from tessera.data.scene_graph import of_samples

    world = lab.world(split="train", kinds={"scene": 0.5, "pair": 0.5}, things=(3, 5), width=64, height=64)
    samples = [world[i] for i in range(16)]
    made = list(ProVision(ProVision.Config(multi=3)).instructions(of_samples(samples)))
    made += list(ProVision(ProVision.Config(several=("none",))).instructions(of_samples(samples[:4], evident=False)))
    wrong, refused = _wrong(made), _wrong(_swapped(made))
    return Finding(
        checks={"no answer is wrong": wrong == 0, "the checker notices swapped answers": refused > len(made) / 4},
        measured={"questions": len(made), "wrong": wrong, "programs": len({i.question.type for i in made})},
        control={"wrong among swapped answers": refused},
    )


@claim(
    "on 1,000 scenes every program is right, its answer the only one, its options balanced",
    kind="effect",
    paper="section 3, table 1",
)
def all_are_right(lab: Lab) -> Finding:
    """24 + 14 programs on 1,000 train scenes against the checker; swapped answers as a control of the checker."""
    from tessera.data.scene_graph import of_samples

    world = lab.world(split="train", kinds={"scene": 0.8, "pair": 0.2})
    samples = [world[i] for i in range(1000)]
    made = list(ProVision(ProVision.Config(choices=0.5)).instructions(of_samples(samples)))
    deep = ProVision.Config(single=("closer_to_anchor", "farther_from_anchor"), several=("none",))
    made += list(ProVision(deep).instructions(of_samples(samples, evident=False)))
    kept = [i for i in made if Rng("kept", i.question.text, i.pictures[0].name).chance(0.4)]
    wrong, refused = _wrong(kept), _wrong(_swapped(kept[:2000]))
    counts = Counter(i.question.type for i in made)
    four = [i.question for i in made if len(i.question.choices) == 4]
    places = Counter(q.choices.index(q.answer) for q in four)
    skew = max(abs(places[k] / len(four) - 0.25) for k in range(4))
    return Finding(
        checks={
            "all 24 + 14 programs ask": len(counts) == len(SINGLE) + len(SEVERAL) == 38,
            "every checked answer is right and the only one": wrong == 0,
            "the right option stands at each of four places within 2 points of 25 %": skew < 0.02,
        },
        measured={
            "questions": len(made),
            "checked": len(kept),
            "wrong": wrong,
            "rarest program": min(counts.values()),
            "skew": skew,
        },
        control={"wrong share of swapped answers": refused / 2000},
    )


@claim("answers from a vision expert's graph are mostly right", kind="effect", paper="section 3.2")
def expert_graphs(lab: Lab) -> Finding:
    """Graphs of the object expert instead of the truth on test scenes; the same graphs with shuffled labels as a control."""
    from dataclasses import replace

    from tessera.data.scene_graph import of_expert, of_samples

    expert, _ = lab.reference("object-expert")
    truth = of_samples(lab.world(kinds={"scene": 1.0}, things=(2, 6))[i] for i in range(200))
    names = ("relation", "head_relation", "leftmost_object", "rightmost_object", "topmost_object", "bottommost_object")
    engine = ProVision(ProVision.Config(single=names, several=("none",), choices=0.0))
    seen = [replace(p, graph=of_expert(expert, p.picture())) for p in truth]
    mixed = []
    for p in seen:
        labels = Rng("labels", p.name).shuffled(p.graph.labels())
        nodes = tuple(replace(n, label=label) for n, label in zip(p.graph.nodes, labels, strict=True))
        mixed.append(replace(p, graph=replace(p.graph, nodes=nodes)))
    shares = {}
    for kind, pictures in (("expert", seen), ("shuffled", mixed)):
        made = list(engine.instructions(pictures))
        shares[kind] = (1 - _wrong(made) / max(1, len(made)), len(made))
    return Finding(
        checks={
            "at least 80 % are right": shares["expert"][0] >= 0.8,
            "30 points more than with shuffled labels": shares["expert"][0] >= shares["shuffled"][0] + 0.3,
        },
        measured={"right": shares["expert"][0], "questions": shares["expert"][1]},
        control={"right": shares["shuffled"][0]},
        note="A thing that the expert splits in two, or takes for another, makes its relations wrong.",
    )


@claim(
    "at equal budget the data teach counting, relations, depth and several pictures",
    kind="effect",
    paper="section 4.2, tables 2 to 4",
)
def teaches(lab: Lab) -> Finding:
    """The reference model trained on for 40 steps with half of its data replaced by the engine's, against the same budget of
    base data and against the same questions with swapped answers; held-out phrasings, test scenes, three seeds."""
    from tessera.data.engine import conversation, mix
    from tessera.data.scene_graph import of_samples
    from tessera.lab.instruments.further import taught
    from tessera.lab.lab import mean, spread

    side = {"kinds": {"scene": 0.7, "pair": 0.3}, "things": (2, 5)}
    train = lab.world(split="train", **side)
    samples = [train[i] for i in range(700)]
    engine = ProVision(ProVision.Config(multi=40))
    made = [i for i in engine.instructions(of_samples(samples[:400])) if i.question.form == "open" or i.question.choices]
    made = Rng("provision", "claim").shuffled(made)[:400]
    base = []
    for sample in samples:
        for q in sample.questions(BASE)[:1] if len(sample.frames) == 1 else ():
            base.append(conversation(sample.images(), q.text, q.answer))
    arms = {
        "base": base,
        "engine": mix(base, [i.record() for i in made], 0.5),
        "swapped": mix(base, [i.record() for i in _swapped(made)], 0.5),
    }
    test = of_samples([lab.world(**side)[i] for i in range(160)])
    held = ProVision(ProVision.Config(multi=12, phrasing="held-out"))
    asked_of = [i for i in held.instructions(test) if i.question.type in (*ABILITIES["count, relation, depth"], *SEVERAL)]
    items = {
        name: to_items(Rng("test", name).pick([i for i in asked_of if i.question.type in types], 168))
        for name, types in ABILITIES.items()
    }
    scores: dict[str, dict[str, list[float]]] = {arm: {} for arm in arms}
    for arm, records in arms.items():
        for seed in lab.seeds:
            model, processor = taught(lab, records, seed=seed, steps=40)
            for name, chosen in items.items():
                scores[arm].setdefault(name, []).append(_accuracy(model, processor, chosen))
            kept = lab.evaluate(model, processor, types=BASE, n=240, world=side)
            for name, found in kept.types.items():
                scores[arm].setdefault(name, []).append(found.accuracy)
    gains = {n: mean(scores["engine"][n]) - mean(scores["base"][n]) for n in scores["base"]}
    lures = {n: mean(scores["swapped"][n]) - mean(scores["base"][n]) for n in ABILITIES}
    losses = {n: gains[n] for n in gains if n not in ABILITIES}
    return Finding(
        checks={
            "counting, relations and depth gain 7 points": gains["count, relation, depth"] >= 0.07,
            "several pictures gain 8 points": gains["several pictures"] >= 0.08,
            "no other kind of question loses more than 1 point": min(losses.values()) >= -0.01,
            "swapped answers gain less": all(lures[n] < gains[n] for n in ABILITIES),
        },
        measured={n: mean(scores["engine"][n]) for n in scores["engine"]},
        baseline={n: mean(scores["base"][n]) for n in scores["base"]},
        control={n: mean(scores["swapped"][n]) for n in ABILITIES},
        spread={n: spread(scores["engine"][n]) for n in scores["engine"]},
        seeds=lab.seeds,
        shape="40 steps of 16 conversations, encoders frozen; accuracy on held-out phrasings and on the world's own questions",
        note="40 of 240 questions per other kind make a point smaller than chance; the reference already counts and relates.",
    )


def _accuracy(model: object, processor: object, items: Sequence[Item]) -> float:
    from tessera.evaluation.harness import ask
    from tessera.evaluation.scoring import normalise

    said = ask(model, processor, items, max_new_tokens=40)
    return sum(normalise(s[0]) == normalise(i.questions[0].answer) for i, s in zip(items, said, strict=True)) / len(items)
