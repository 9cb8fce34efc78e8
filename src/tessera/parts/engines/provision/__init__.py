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
from tessera.parts.engines.provision.corpus import Corpus
from tessera.parts.engines.provision.draft import Context, Draft, kind_values
from tessera.parts.engines.provision.several import multi_programs
from tessera.parts.engines.provision.single import programs
from tessera.registry import part
from tessera.world.rng import Rng
from tessera.world.scene import Question

if TYPE_CHECKING:
    from tessera.evaluation.items import Item

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
        depth_gap: least difference in depth that is asked about, where depths come without visible order. seed: of all draws."""

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
