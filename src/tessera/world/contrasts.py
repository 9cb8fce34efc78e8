"""Questions whose answer differs between the two pictures of a pair, because a single thing was changed.

Questions about the changed thing itself are asked directly; others by the world's own question makers, and they count as a
contrast if both pictures can be asked and answer differently. Either way answers are kept unique by the makers' margins.
"""

from __future__ import annotations

from tessera.errors import UserError
from tessera.world.dataset import Sample
from tessera.world.lists import LIST_PROMPTS, lists
from tessera.world.questions import box_text, generate
from tessera.world.questions.facts import THIRD_MARGIN, Facts, FrameThing
from tessera.world.questions.lexicon import world_lexicon
from tessera.world.questions.phrasing import article, phrase
from tessera.world.scene import Question

Contrast = tuple[str, tuple[str, str]]
"""A question with the answers of the first and of the second picture."""
FORMS = ("names", "places")
"""Lists that are asked for besides."""
_ROUNDS = 2
"""How often questions are drawn: makers choose among things at random, and both pictures must be asked about the same ones."""
_THERE = ("count", "total", "size", "odd", "relation", "multihop")
_PLACED = ("relation", "distance", "at", "multihop")
_TYPES = {
    "added": _THERE,
    "removed": _THERE,
    "moved": _PLACED,
    "recoloured": ("multihop",),
    "grown": ("size", "category"),
    "shrunk": ("size", "category"),
}
"""By kind of change: the question types whose answers it can turn."""


def singles(sample: Sample) -> tuple[Sample, Sample]:
    """The two pictures of a pair as samples of one picture each. Raises `UserError` for a sample that is no pair."""
    if sample.kind != "pair" or len(sample.frames) != 2:
        raise UserError(f"contrasts are found in pairs; sample {sample.index} is a {sample.kind}.")
    first, second = (Sample(sample.config, sample.index, "scene", (f,), (), sample.pool) for f in sample.frames)
    return first, second


def contrasts(sample: Sample) -> list[Contrast]:
    """All contrasts found in a pair, the same ones every time; questions with choices are left out, for they differ in those."""
    first, second = singles(sample)
    found: dict[tuple[tuple[str, object], ...], Contrast] = {}
    made = _changed(sample)
    for number in range(_ROUNDS):
        before, after = ({q.query: q for q in _questions(s, sample, number)} for s in (first, second))
        for query, question in before.items():
            other = after.get(query)
            if other is not None and other.answer != question.answer:
                found.setdefault(query, (question.text, (question.answer, other.answer)))
    made += found.values()
    for form in FORMS:
        one, two = (lists(s)[form] for s in (first, second))
        if one != two:
            made.append((LIST_PROMPTS[form], (one, two)))
    return made


def _questions(single: Sample, pair: Sample, number: int) -> list[Question]:
    rng = pair.rng(f"contrasts {number}")
    return [q for q in generate(single, rng, _TYPES[pair.changes[0].kind]) if not q.choices]


def _changed(sample: Sample) -> list[Contrast]:
    """Whether the changed thing is there, where it is, its box, its colour: what the change itself decides of these."""
    change, frames = sample.changes[0], Facts(sample, world_lexicon()).frames
    before, after = (next((i for i in f.items if i.key == change.key), None) for f in frames)
    item = after or before
    if item is None or not all(i is None or i.askable for i in (before, after)):
        return []
    rng = sample.rng("changed")
    if before is None or after is None:
        akin = world_lexicon().clashes.get(item.concept, frozenset())
        other = frames[0] if before is None else frames[1]
        if not {item.concept, *akin}.isdisjoint(other.counts):
            return []
        answers = ("no", "yes") if before is None else ("yes", "no")
        return [(phrase(rng, "exists", a=article(item.name), name=item.name), answers)]
    if change.kind == "moved" and before.place != after.place and _sure(before) and _sure(after):
        return [(phrase(rng, "where", name=item.name), (before.place, after.place))]
    if change.kind in ("grown", "shrunk"):
        return [(phrase(rng, "box", name=item.name), (box_text(before.box), box_text(after.box)))]
    if change.kind == "recoloured" and before.tint is not None and after.tint is not None:
        return [(phrase(rng, "tint", name=item.name), (before.tint, after.tint))]
    return []


def _sure(item: FrameThing) -> bool:
    return all(abs(v - third) >= THIRD_MARGIN for v in (item.x, item.y) for third in (1 / 3, 2 / 3))
