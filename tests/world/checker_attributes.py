"""Every answer that can be defended, continued: what is near, large, odd, and how it looks. See `tests.world.checker`."""

from __future__ import annotations

import math

from tests.world.checker_ops import Op, Query, Verdict, clear, named, registrar, things
from tests.world.measured import EPS, HALF, Facts, Seen, Unclear

from tessera.world.backgrounds import COLOURS, TINTS
from tessera.world.scene import STYLES, Question

RATIO = 1.20

OPS: dict[str, Op] = {}
op = registrar(OPS)


def nearest(facts: Facts, reference: Seen, farthest: bool = False) -> list[Seen]:
    """The things that could be called nearest to (farthest from) another one, by the centres of the boxes in pixels."""
    scene = facts.sample.frames[0]
    spans = [
        (math.hypot((s.x - reference.x) * scene.width, (s.y - reference.y) * scene.height), s)
        for s in things(facts)
        if s is not reference
    ]
    if len(spans) < 2:
        raise Unclear("fewer than two things to choose from")
    best = max(d for d, _ in spans) if farthest else min(d for d, _ in spans)
    ratio = RATIO - EPS
    return [s for d, s in spans if (d > best / ratio if farthest else d < best * ratio)]


@op("nearest", "farthest")
def distance(facts: Facts, query: Query, question: Question) -> Verdict:
    reference = facts.one(query["concept"])
    return named(nearest(facts, reference, query["op"] == "farthest"), reference)


@op("tint_nearest")
def tint_nearest(facts: Facts, query: Query, question: Question) -> Verdict:
    reference = facts.one(query["concept"])
    found = nearest(facts, reference)
    if any(s.record.tint not in TINTS or s.visible < HALF - 0.03 for s in found):
        raise Unclear("the nearest thing has no colour of its own, or can hardly be seen")
    return Verdict({s.record.tint for s in found}, needed=tuple(s.shown for s in (*found, reference)))


def extreme(found: list[Seen], largest: bool) -> list[Seen]:
    """The things that could be called the largest (smallest) of these, by the root of the box's area."""
    ratio = RATIO - EPS
    best = max(s.side for s in found) if largest else min(s.side for s in found)
    return [s for s in found if (s.side > best / ratio if largest else s.side < best * ratio)]


@op("larger", "smaller")
def compare(facts: Facts, query: Query, question: Question) -> Verdict:
    things(facts)
    pair = [facts.one(query["a"]), facts.one(query["b"])]
    found = extreme(pair, query["op"] == "larger")
    return named(found, *pair)


@op("largest", "smallest")
def of_all(facts: Facts, query: Query, question: Question) -> Verdict:
    if len(things(facts)) < 2:
        raise Unclear("nothing to compare with")
    return named(extreme(things(facts), query["op"] == "largest"))


@op("category_largest")
def category_largest(facts: Facts, query: Query, question: Question) -> Verdict:
    found = extreme(things(facts), True)
    return Verdict({s.category for s in found}, needed=tuple(s.shown for s in found))


@op("odd")
def odd(facts: Facts, query: Query, question: Question) -> Verdict:
    seen = clear(things(facts))
    if len(seen) < 3:
        raise Unclear("none of two is odd")
    strange = [
        s
        for s in seen
        if len({o.category for o in seen if o is not s}) == 1 and all(o.category != s.category for o in seen if o is not s)
    ]
    return named(strange, *seen)


# How it looks


@op("tint", "style")
def look(facts: Facts, query: Query, question: Question) -> Verdict:
    things(facts)
    thing = facts.one(query["concept"])
    said = thing.record.tint if query["op"] == "tint" else STYLES[thing.record.style]
    if said is None:
        raise Unclear(f"{thing.name} has no colour of its own")
    return Verdict({said}, needed=(thing.shown,))


@op("background")
def background(facts: Facts, query: Query, question: Question) -> Verdict:
    things(facts)
    colour = facts.sample.frames[0].background.colour
    if colour not in COLOURS:
        raise Unclear(f"{colour!r} is no colour")
    return Verdict({colour}, needed=((0, (0.0, 0.0, 1.0, 1.0)),))
