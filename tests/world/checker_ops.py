"""Every answer that can be defended, per "op" of a query: see `tests.world.checker`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tests.world.measured import EPS, HALF, Facts, Seen, Shown, Unclear, cells_of, overlap, touched

from tessera.world.concepts import concepts
from tessera.world.scene import Question

RELATION, REGION, THIRDS = 0.10, 0.04, 0.03
NINTHS = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)
AXES = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}

Query = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """`valid`: every defensible answer; `also`: other words for the right one; `needed`: what the evidence must show."""

    valid: set[str]
    also: frozenset[str] = frozenset()
    needed: tuple[Shown, ...] = ()


Op = Callable[[Facts, Query, Question], Verdict]
OPS: dict[str, Op] = {}


def registrar(table: dict[str, Op]) -> Callable[..., Callable[[Op], Op]]:
    """A decorator that enters a function into `table` under each of its names."""

    def op(*names: str) -> Callable[[Op], Op]:
        def register(function: Op) -> Op:
            table.update(dict.fromkeys(names, function))
            return function

        return register

    return op


op = registrar(OPS)


def things(facts: Facts) -> list[Seen]:
    """The things of a sample of one frame. Raises `Unclear` for other samples."""
    if len(facts.frames) != 1 or facts.sample.kind in ("pair", "clip"):
        raise Unclear("a question about one picture is asked about several")
    return facts.frames[0]


def named(found: Iterable[Seen], *needed: Seen) -> Verdict:
    """The verdict for "which thing": answers are names, other names of the same things are right too."""
    found = list(found)
    if len(found) == 1 and (found[0].visible < HALF - 0.03):
        raise Unclear(f"the answer {found[0].name} is only {found[0].visible:.2f} visible")
    also = frozenset(itertools.chain.from_iterable(s.names for s in found))
    return Verdict({s.name for s in found}, also, tuple(s.shown for s in (*found, *needed)))


def clear(seen: list[Seen]) -> list[Seen]:
    """All things, if each is visible enough to be counted."""
    hidden = [s.name for s in seen if s.visible < HALF - 0.03]
    if hidden:
        raise Unclear(f"counting where {', '.join(hidden)} can hardly be seen")
    return seen


# What is there


@op("exists")
def exists(facts: Facts, query: Query, question: Question) -> Verdict:
    concept = concepts()[query["concept"]]
    words = {concept.name, *concept.synonyms}
    same = [s for s in things(facts) if s.record.concept == query["concept"]]
    akin = [s for s in things(facts) if s.names & words and s not in same]
    seen = [s for s in same if s.visible >= HALF - 0.03]
    valid = {"yes"} if seen else {"no"} if not akin and not same else {"yes", "no"}
    return Verdict(valid, needed=tuple(s.shown for s in same))


@op("count")
def count(facts: Facts, query: Query, question: Question) -> Verdict:
    words = {concepts()[query["concept"]].name, *concepts()[query["concept"]].synonyms}
    seen = clear(things(facts))
    same = [s for s in seen if s.record.concept == query["concept"]]
    akin = [s for s in seen if s.names & words]
    if not 1 <= len(same) <= 6:
        raise Unclear(f"a count of {len(same)}")
    return Verdict({str(len(same)), str(len(akin))}, needed=tuple(s.shown for s in same))


@op("count_category")
def count_category(facts: Facts, query: Query, question: Question) -> Verdict:
    same = [s for s in clear(things(facts)) if s.category == query["category"]]
    if not 1 <= len(same) <= 6:
        raise Unclear(f"a count of {len(same)}")
    return Verdict({str(len(same))}, needed=tuple(s.shown for s in same))


@op("total")
def total(facts: Facts, query: Query, question: Question) -> Verdict:
    seen = clear(things(facts))
    return Verdict({str(len(seen))}, needed=tuple(s.shown for s in seen))


@op("more")
def more(facts: Facts, query: Query, question: Question) -> Verdict:
    groups = {}
    for key in ("a", "b"):
        words = {concepts()[query[key]].name}
        groups[key] = [s for s in clear(things(facts)) if s.names & words or s.record.concept == query[key]]
        if any(s.record.concept != query[key] for s in groups[key]) or not groups[key]:
            raise Unclear(f"{words} is not there or means several kinds")
    most = max(len(g) for g in groups.values())
    valid = {g[0].name for g in groups.values() if len(g) == most}
    return Verdict(valid, needed=tuple(s.shown for g in groups.values() for s in g))


# Where it is


def beside(facts: Facts, query: Query) -> tuple[Seen, list[Seen], list[Seen]]:
    """The thing named, those surely beside it in the direction, and those of which one could doubt it."""
    reference = facts.one(query["concept"])
    axis, sign = AXES[query["direction"]]
    gaps = [(sign * ((s.x, s.y)[axis] - (reference.x, reference.y)[axis]), s) for s in things(facts) if s is not reference]
    return (
        reference,
        [s for gap, s in gaps if gap >= RELATION - EPS],
        [s for gap, s in gaps if abs(gap) < RELATION - EPS],
    )


@op("beside", "category_beside")
def which_beside(facts: Facts, query: Query, question: Question) -> Verdict:
    reference, sure, unsure = beside(facts, query)
    if len(sure) != 1:
        raise Unclear(f"{len(sure)} things are {query['direction']} of {reference.name}")
    if query["op"] == "beside":
        return named([*sure, *unsure], reference)
    needed = tuple(s.shown for s in (*sure, reference))
    return Verdict({s.category for s in (*sure, *unsure)}, needed=needed)


@op("count_beside")
def count_beside(facts: Facts, query: Query, question: Question) -> Verdict:
    clear(things(facts))
    reference, sure, unsure = beside(facts, query)
    valid = {str(n) for n in range(len(sure), len(sure) + len(unsure) + 1)}
    return Verdict(valid, needed=tuple(s.shown for s in (*sure, reference)))


@op("is_beside")
def is_beside(facts: Facts, query: Query, question: Question) -> Verdict:
    a, b = facts.one(query["a"]), facts.one(query["b"])
    axis, sign = AXES[query["direction"]]
    gap = sign * ((a.x, a.y)[axis] - (b.x, b.y)[axis])
    valid = {"yes", "no"} if abs(gap) < RELATION - EPS else {"yes"} if gap > 0 else {"no"}
    return Verdict(valid, needed=(a.shown, b.shown))


@op("where")
def where(facts: Facts, query: Query, question: Question) -> Verdict:
    thing = facts.one(query["concept"])
    slack = THIRDS - EPS
    columns = {min(2, int(3 * min(max(thing.x + d, 0), 1))) for d in (-slack, 0, slack)}
    rows = {min(2, int(3 * min(max(thing.y + d, 0), 1))) for d in (-slack, 0, slack)}
    return Verdict({NINTHS[r][c] for r in rows for c in columns}, needed=(thing.shown,))


def quarter(facts: Facts, region: str) -> list[Seen]:
    """The things that are in a quarter of the picture, or could be said to be."""
    vertical, horizontal = region.split()
    return [
        s
        for s in things(facts)
        if (s.y < 0.5 + REGION - EPS if vertical == "top" else s.y > 0.5 - REGION + EPS)
        and (s.x < 0.5 + REGION - EPS if horizontal == "left" else s.x > 0.5 - REGION + EPS)
    ]


@op("at_region")
def at_region(facts: Facts, query: Query, question: Question) -> Verdict:
    inside = quarter(facts, query["region"])
    if len(inside) != 1:
        raise Unclear(f"{len(inside)} things are in the {query['region']}")
    return named(inside)


@op("category_region")
def category_region(facts: Facts, query: Query, question: Question) -> Verdict:
    inside = quarter(facts, query["region"])
    return Verdict({s.category for s in inside}, needed=tuple(s.shown for s in inside))


@op("at_box")
def at_box(facts: Facts, query: Query, question: Question) -> Verdict:
    cells = tuple(query["box"])
    x0, y0, x1, y1 = cells[0] / 100, cells[1] / 100, (cells[2] + 1) / 100, (cells[3] + 1) / 100
    inside = [
        s
        for s in things(facts)
        if (x0 - EPS <= s.x <= x1 + EPS and y0 - EPS <= s.y <= y1 + EPS) or overlap(touched(s.box), cells) > 0.35
    ]
    return named(inside)


@op("box")
def box(facts: Facts, query: Query, question: Question) -> Verdict:
    thing = facts.one(query["concept"])
    if overlap(cells_of(question.answer), touched(thing.box)) < 1:
        raise Unclear(f"the box is {touched(thing.box)}, not {question.answer}")
    return Verdict({question.answer}, needed=(thing.shown,))
