"""Attributes of things: size, attribute, category, odd."""

from __future__ import annotations

from tessera.world.questions.base import ask, others, question_type
from tessera.world.questions.facts import RATIO, Facts, FrameThing
from tessera.world.questions.phrasing import phrase, reason
from tessera.world.rng import Rng
from tessera.world.scene import STYLES, Question


@question_type("size", "open", "choice")
def size(facts: Facts, rng: Rng) -> list[Question]:
    """Which of two things is larger or smaller, and which of all."""
    frame = facts.single
    if frame is None or len(frame.items) < 2:
        return []
    made: list[Question] = []
    for _ in range(3):
        if len(frame.askable) < 2:
            break
        a, b = rng.pick(frame.askable, 2)
        large, small = (a, b) if a.side > b.side else (b, a)
        if large.side < RATIO * small.side:
            continue
        op, right, left_over = ("larger", large, small) if rng.chance(0.5) else ("smaller", small, large)
        wrong, _ = facts.wrong_names(frame, rng, right, left_over)
        made.append(
            ask(
                "size",
                rng,
                phrase(rng, op, a=a.name, b=b.name),
                right.name,
                reason(op, a=right.name, b=left_over.name),
                ((frame.index, a.box), (frame.index, b.box)),
                (("op", op), ("a", a.concept), ("b", b.concept)),
                wrong=(left_over.name, *wrong[:2]),
            )
        )
        break
    line = frame.by_side()
    for op, item, rival in (("largest", line[-1], line[-2]), ("smallest", line[0], line[1])):
        large, small = (item, rival) if op == "largest" else (rival, item)
        if item.askable and large.side >= RATIO * small.side:
            wrong, offered = facts.wrong_names(frame, rng, item)
            made.append(
                ask(
                    "size",
                    rng,
                    phrase(rng, op),
                    item.name,
                    reason(op, a=item.name, place=item.place),
                    ((frame.index, item.box),),
                    (("op", op),),
                    wrong=wrong,
                    offered=offered,
                )
            )
    return made


@question_type("attribute", "open", "choice")
def attribute(facts: Facts, rng: Rng) -> list[Question]:
    """The colour of a tinted thing, the style of a thing, the colour of the background."""
    frame = facts.single
    if frame is None:
        return []
    made: list[Question] = []
    tinted = [i for i in frame.askable if i.tint is not None]
    if tinted:
        item = rng.choice(tinted)
        colour = item.tint or ""
        wrong = others(rng, facts.lexicon.tints, colour)
        made.append(
            ask(
                "attribute",
                rng,
                phrase(rng, "tint", name=item.name),
                colour,
                reason("tint", name=item.name, place=item.place, colour=colour),
                ((frame.index, item.box),),
                (("op", "tint"), ("concept", item.concept)),
                wrong=wrong,
                offered=wrong,
            )
        )
    if frame.askable:
        item = rng.choice(frame.askable)
        made.append(
            ask(
                "attribute",
                rng,
                phrase(rng, "style", name=item.name),
                item.style,
                reason("style", name=item.name, place=item.place, style=item.style),
                ((frame.index, item.box),),
                (("op", "style"), ("concept", item.concept)),
                wrong=[s for s in STYLES if s != item.style],
            )
        )
    colour = frame.scene.background.colour
    wrong = others(rng, facts.lexicon.colours, colour)
    made.append(
        ask(
            "attribute",
            rng,
            phrase(rng, "background"),
            colour,
            reason("background", colour=colour),
            ((frame.index, (0.0, 0.0, 1.0, 1.0)),),
            (("op", "background"),),
            wrong=wrong,
            offered=wrong,
        )
    )
    return made


@question_type("category", "open", "choice")
def category(facts: Facts, rng: Rng) -> list[Question]:
    """What kind of thing is in a quarter of the picture, and what kind the largest one is."""
    frame = facts.single
    if frame is None or not frame.items:
        return []
    made: list[Question] = []
    corners = list(frame.quadrants().items())
    share = facts.pool.share
    if corners:
        region, item = rng.choice(corners)
        if rng.chance(share(item.category)):
            text = phrase(rng, "category_region", first=not frame.only_things, region=region)
            made.append(_category(facts, rng, text, item, (("op", "category_region"), ("region", region))))
    line = frame.by_side()
    if len(line) > 1 and line[-1].visible and line[-1].side >= RATIO * line[-2].side and rng.chance(share(line[-1].category)):
        text = phrase(rng, "category_largest")
        made.append(_category(facts, rng, text, line[-1], (("op", "category_largest"),)))
    return made


def _category(facts: Facts, rng: Rng, text: str, item: FrameThing, query: tuple[tuple[str, object], ...]) -> Question:
    wrong = wrong_categories(facts, rng, item.category)
    return ask(
        "category",
        rng,
        text,
        item.category,
        reason("category", name=item.name, place=item.place, kind=item.category),
        ((0, item.box),),
        query,
        wrong=wrong,
        offered=wrong,
    )


def wrong_categories(facts: Facts, rng: Rng, right: str) -> list[str]:
    """Three other categories: first those of the picture, then those of random concepts, which are as
    frequent as answers are.
    """
    frame = facts.frames[0]
    wrong = rng.pick([c for c in frame.categories if c != right], 3)
    concepts = facts.lexicon.concepts
    for _ in range(12):
        if len(wrong) == 3 or not facts.pool.ids:
            break
        other = concepts[rng.choice(facts.pool.ids)].category
        if other != right and other not in wrong and rng.chance(facts.pool.share(other)):
            wrong.append(other)
    rest = [c for c in facts.pool.by_category if c != right and c not in wrong] if len(wrong) < 3 else []
    return wrong + rng.pick(rest, 3 - len(wrong))


@question_type("odd", "open")
def odd(facts: Facts, rng: Rng) -> list[Question]:
    """Which thing is of another kind than all others, which share one. Never a choice: the names alone would
    tell.
    """
    frame = facts.single
    if frame is None or len(frame.items) < 3 or len(frame.categories) != 2 or not frame.clear:
        return []
    (kind, n), (other, m) = frame.categories.items()
    if min(n, m) != 1:
        return []
    if n != 1:
        kind, other = other, kind
    item = next(i for i in frame.items if i.category == kind)
    if not item.askable:
        return []
    wrong, _ = facts.wrong_names(frame, rng, item)
    return [
        ask(
            "odd",
            rng,
            phrase(rng, "odd"),
            item.name,
            reason("odd", name=item.name, kind=kind, other=other),
            tuple((frame.index, i.box) for i in frame.items),
            (("op", "odd"),),
            wrong=wrong,
        )
    ]
