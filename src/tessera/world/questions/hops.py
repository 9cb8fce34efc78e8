"""Questions of two steps: find a thing by another one, then count, name its colour or its kind."""

from __future__ import annotations

from tessera.world.questions.attributes import wrong_categories
from tessera.world.questions.base import ask, others, question_type
from tessera.world.questions.facts import Facts, Frame, FrameThing
from tessera.world.questions.phrasing import DIRECTION_WORDS, phrase, reason
from tessera.world.rng import Rng
from tessera.world.scene import Question

_COUNTS = tuple(str(n) for n in range(7))
_P_SAME_KIND = 0.15  # how often the kind sought may be the kind of the thing named, which is a cheap guess

References = list[tuple[FrameThing, str, list[FrameThing]]]


@question_type("multihop", "open", "choice")
def multihop(facts: Facts, rng: Rng) -> list[Question]:
    """How many things are beside one, the colour of the nearest to one, the kind of the one beside it."""
    frame = facts.single
    if frame is None or len(frame.items) < 2:
        return []
    references = frame.references()
    made = (_count(frame, rng, references), _tint(facts, frame, rng), _kind(facts, frame, rng, references))
    return [q for q in made if q is not None]


def _count(frame: Frame, rng: Rng, references: References) -> Question | None:
    by_number: dict[int, References] = {}
    for case in references:
        if len(case[2]) < len(_COUNTS):
            by_number.setdefault(len(case[2]), []).append(case)
    if not by_number or not frame.clear:
        return None
    # Small numbers are nearly always to be had: without the weights they would be most of the answers.
    numbers = sorted(by_number)
    ref, way, there = rng.choice(by_number[rng.weighted(numbers, [n + 0.5 for n in numbers])])
    answer, where = str(len(there)), DIRECTION_WORDS[way]
    wrong = others(rng, _COUNTS, answer)
    if there:
        why = reason("count_beside", direction=where, name=ref.name, names=", ".join(i.name for i in there))
    else:
        why = reason("count_beside_none", direction=where, name=ref.name)
    return ask(
        "multihop",
        rng,
        phrase(rng, "count_beside", direction=where, name=ref.name),
        answer,
        why,
        ((frame.index, ref.box), *((frame.index, i.box) for i in there)),
        (("op", "count_beside"), ("concept", ref.concept), ("direction", way)),
        wrong=wrong,
        offered=wrong,
    )


def _tint(facts: Facts, frame: Frame, rng: Rng) -> Question | None:
    if all(item.tint is None for item in frame.items):
        return None
    for ref in rng.pick(frame.askable, 3):
        item = frame.extreme(ref, nearest=True)
        if item is None or item.tint is None or not item.visible:
            continue
        wrong = others(rng, facts.lexicon.tints, item.tint)
        return ask(
            "multihop",
            rng,
            phrase(rng, "tint_nearest", name=ref.name),
            item.tint,
            reason("tint_nearest", a=item.name, b=ref.name, colour=item.tint),
            ((frame.index, ref.box), (frame.index, item.box)),
            (("op", "tint_nearest"), ("concept", ref.concept)),
            wrong=wrong,
            offered=wrong,
        )
    return None


def _kind(facts: Facts, frame: Frame, rng: Rng, references: References) -> Question | None:
    cases = [
        (ref, way, there[0])
        for ref, way, there in references
        if len(there) == 1 and there[0].visible and (there[0].category != ref.category or rng.chance(_P_SAME_KIND))
    ]
    if not cases:
        return None
    ref, way, item = rng.choice(cases)
    if not rng.chance(facts.pool.share(item.category)):
        return None
    wrong = wrong_categories(facts, rng, item.category)
    where = DIRECTION_WORDS[way]
    return ask(
        "multihop",
        rng,
        phrase(rng, "category_beside", first=not frame.only_things, direction=where, name=ref.name),
        item.category,
        reason("category_beside", a=item.name, b=ref.name, direction=where, kind=item.category),
        ((frame.index, ref.box), (frame.index, item.box)),
        (("op", "category_beside"), ("concept", ref.concept), ("direction", way)),
        wrong=wrong,
        offered=wrong,
    )
