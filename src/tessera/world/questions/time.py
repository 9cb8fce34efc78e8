"""What changed between two pictures, and what happened in a clip."""

from __future__ import annotations

from tessera.world.questions.base import ask, others, question_type
from tessera.world.questions.facts import GAP, Facts, Frame, FrameThing
from tessera.world.questions.phrasing import CHANGES, MOVES, event_text, phrase, reason
from tessera.world.rng import Rng
from tessera.world.scene import Change, Question

_STRAIGHT = 1.2  # how much farther a thing must go along a direction than across it


@question_type("change", "open", "choice")
def change(facts: Facts, rng: Rng) -> list[Question]:
    """What changed between the two pictures of a pair, and what happened to the thing that did."""
    sample = facts.sample
    if sample.kind != "pair" or len(facts.frames) != 2 or len(sample.changes) != 1:
        return []
    event = sample.changes[0]
    before, after = (_find(frame, event.key) for frame in facts.frames)
    item = after or before
    if item is None or event.kind not in CHANGES or not _askable(facts, event.key):
        return []
    frame = facts.frames[1] if after is not None else facts.frames[0]
    evidence = tuple((f.index, i.box) for f, i in zip(facts.frames, (before, after), strict=True) if i is not None)
    tint = item.tint if after is not None and after.tint is not None else None
    why = reason("change", event=event_text(event.kind, item.name, direction=event.direction, colour=tint))
    wrong, offered = facts.wrong_names(frame, rng, item)
    kinds = others(rng, CHANGES, event.kind)
    return [
        ask(
            "change",
            rng,
            phrase(rng, f"changed_{event.kind}"),
            item.name,
            why,
            evidence,
            (("op", "changed"), ("kind", event.kind)),
            wrong=wrong,
            offered=offered,
        ),
        ask(
            "change",
            rng,
            phrase(rng, "what_happened", name=item.name),
            event.kind,
            why,
            evidence,
            (("op", "what_happened"), ("concept", item.concept)),
            wrong=kinds,
            offered=kinds,
        ),
    ]


@question_type("order", "open", "choice")
def order(facts: Facts, rng: Rng) -> list[Question]:
    """What appeared first, what vanished, where a thing moved, what swapped places, in a clip."""
    sample = facts.sample
    if sample.kind != "clip" or len(facts.frames) < 2:
        return []
    by_kind: dict[str, list[Change]] = {"appears": [], "vanishes": [], "moves": [], "swaps": []}
    for event in sample.changes:
        if event.kind in by_kind:
            by_kind[event.kind].append(event)
    made = [
        _first(facts, rng, by_kind["appears"]),
        _vanished(facts, rng, by_kind["vanishes"]),
        _swapped(facts, rng, by_kind["swaps"]),
        _moved(facts, rng, by_kind["moves"]),
    ]
    return [q for q in made if q is not None][:3]


def _find(frame: Frame, key: int) -> FrameThing | None:
    return next((item for item in frame.items if item.key == key), None)


def _askable(facts: Facts, key: int) -> bool:
    """Whether a thing may be named: in every frame that shows it, it is at least half visible, and no other
    thing of any frame bears its name.
    """
    concepts = [item.concept for frame in facts.frames for item in frame.items if item.key == key]
    if not concepts:
        return False
    clash = facts.lexicon.clashes.get(concepts[0], frozenset())
    for frame in facts.frames:
        for item in frame.items:
            if item.key == key:
                if not item.visible or item.concept != concepts[0]:
                    return False
            elif item.concept == concepts[0] or item.concept in clash:
                return False
    return True


def _shown(facts: Facts, key: int, *, start: int = 0) -> list[tuple[int, FrameThing]]:
    """(frame, thing) for every frame from `start` on that shows it."""
    return [(f.index, i) for f in facts.frames[start:] if (i := _find(f, key)) is not None]


def _first(facts: Facts, rng: Rng, events: list[Change]) -> Question | None:
    named = [e for e in events if _askable(facts, e.key) and _appears_once(facts, e)]
    pairs = [(a, b) for a in named for b in named if a.frame < b.frame]
    if not pairs:
        return None
    early, late = rng.choice(pairs)
    (t, first), (u, second) = _shown(facts, early.key)[0], _shown(facts, late.key)[0]
    a, b = (first, second) if rng.chance(0.5) else (second, first)
    wrong, _ = facts.wrong_names(facts.frames[u], rng, first, second)
    return ask(
        "order",
        rng,
        phrase(rng, "first", a=a.name, b=b.name),
        first.name,
        reason("first", a=first.name, b=second.name),
        ((t, first.box), (u, second.box)),
        (("op", "first"), ("a", a.concept), ("b", b.concept)),
        wrong=(second.name, *wrong[:2]),
    )


def _appears_once(facts: Facts, event: Change) -> bool:
    shown = [_find(f, event.key) is not None for f in facts.frames]
    return event.frame > 0 and not any(shown[: event.frame]) and shown[event.frame : event.frame + 1] == [True]


def _vanished(facts: Facts, rng: Rng, events: list[Change]) -> Question | None:
    if len(events) != 1 or not _askable(facts, events[0].key):
        return None
    event = events[0]
    seen = _shown(facts, event.key)
    t, item = seen[-1]
    if t >= event.frame or event.frame >= len(facts.frames):
        return None
    wrong, offered = facts.wrong_names(facts.frames[event.frame], rng, item)
    return ask(
        "order",
        rng,
        phrase(rng, "vanished"),
        item.name,
        reason("change", event=event_text("vanishes", item.name)),
        ((t, item.box),),
        (("op", "vanished"),),
        wrong=wrong,
        offered=offered,
    )


def _swapped(facts: Facts, rng: Rng, events: list[Change]) -> Question | None:
    keys = [k for e in events for k in (e.key, e.other)]
    good = [e for e in events if keys.count(e.key) == 1 == keys.count(e.other) and _both_named(facts, e)]
    if not good:
        return None
    event = rng.choice(good)
    a, b = (event.key, event.other) if rng.chance(0.5) else (event.other, event.key)
    seen = {key: _shown(facts, key, start=event.frame) or _shown(facts, key) for key in (a, b)}
    (t, ref), (u, item) = seen[a][0], seen[b][0]
    wrong, offered = facts.wrong_names(facts.frames[u], rng, item, ref)
    return ask(
        "order",
        rng,
        phrase(rng, "swapped", name=ref.name),
        item.name,
        reason("change", event=event_text("swaps", item.name, other=ref.name)),
        ((t, ref.box), (u, item.box)),
        (("op", "swapped"), ("concept", ref.concept)),
        wrong=wrong,
        offered=offered,
    )


def _both_named(facts: Facts, event: Change) -> bool:
    return _askable(facts, event.key) and _askable(facts, event.other)


def _moved(facts: Facts, rng: Rng, events: list[Change]) -> Question | None:
    stirred = [k for e in facts.sample.changes if e.kind in ("moves", "swaps") for k in (e.key, e.other)]
    for event in rng.shuffled(events):
        if event.direction not in MOVES or stirred.count(event.key) != 1 or not _askable(facts, event.key):
            continue
        seen = _shown(facts, event.key)
        (t, start), (u, end) = seen[0], seen[-1]
        dx, dy = end.x - start.x, end.y - start.y
        along, across = {"left": (-dx, dy), "right": (dx, dy), "up": (-dy, dx), "down": (dy, dx)}[event.direction]
        if along < GAP or along < _STRAIGHT * abs(across):
            continue
        wrong = others(rng, MOVES, event.direction)
        return ask(
            "order",
            rng,
            phrase(rng, "moved", name=end.name),
            event.direction,
            reason("change", event=event_text("moves", end.name, direction=event.direction)),
            ((t, start.box), (u, end.box)),
            (("op", "moved"), ("concept", end.concept)),
            wrong=wrong,
            offered=wrong,
        )
    return None
