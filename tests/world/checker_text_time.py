"""Every answer that can be defended, continued: what is written, what changed, what happened. See `tests.world.checker`."""

from __future__ import annotations

from tests.world.checker_ops import Op, Query, Verdict, named, registrar
from tests.world.measured import EPS, Facts, Seen, Unclear

from tessera.world.scene import Panel, Question, Thing

APART, STRAIGHT = 0.10, 1.2
MOVES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
DRAWN = ("bar", "line", "pie")

OPS: dict[str, Op] = {}
op = registrar(OPS)


@op("read")
def read(facts: Facts, query: Query, question: Question) -> Verdict:
    scene = facts.sample.frames[0]
    sign = scene.signs[query["sign"]]
    alike = [s for s in scene.signs if s.palette == sign.palette]
    drawing = facts.sample.drawings()[0]
    inside = [
        character
        for character, (x0, y0, x1, y1) in drawing.characters
        if sign.box[0] <= (x0 + x1) / 2 <= sign.box[2] and sign.box[1] <= (y0 + y1) / 2 <= sign.box[3]
    ]
    if "".join(inside) != sign.text:
        raise Unclear(f"the sign is drawn as {''.join(inside)!r}")
    return Verdict({s.text for s in alike}, needed=((0, sign.box),))


def panel_of(facts: Facts) -> Panel:
    panel = facts.sample.frames[0].panel
    if panel is None or len(panel.labels) != len(panel.values) or len(set(panel.labels)) != len(panel.labels):
        raise Unclear("there is no panel, or its labels repeat")
    written = {text for text, _, _ in facts.sample.drawings()[0].strings}
    if not set(panel.labels) <= written:
        raise Unclear(f"the labels {set(panel.labels) - written} are not drawn")
    return panel


@op("value", "value_colour")
def value(facts: Facts, query: Query, question: Question) -> Verdict:
    panel = panel_of(facts)
    keys, wanted = (panel.labels, query["label"]) if query["op"] == "value" else (panel.colours, query["colour"])
    valid = {str(v) for k, v in zip(keys, panel.values, strict=True) if k == wanted}
    return Verdict(valid, needed=((0, panel.box),))


@op("highest", "lowest")
def highest(facts: Facts, query: Query, question: Question) -> Verdict:
    panel = panel_of(facts)
    slack = 0.05 * max(panel.values) - EPS if panel.kind in DRAWN else 0
    best = max(panel.values) if query["op"] == "highest" else min(panel.values)
    valid = {k for k, v in zip(panel.labels, panel.values, strict=True) if abs(v - best) <= slack}
    return Verdict(valid, needed=((0, panel.box),))


@op("sum")
def total(facts: Facts, query: Query, question: Question) -> Verdict:
    panel = panel_of(facts)
    if panel.kind != "receipt":
        raise Unclear(f"a {panel.kind} has no total")
    return Verdict({str(sum(panel.values))}, needed=((0, panel.box),))


# Pairs


def differences(facts: Facts) -> list[tuple[str, Seen]]:
    """Everything in which the two frames of a pair differ: (what happened, the thing as last seen)."""
    if facts.sample.kind != "pair" or len(facts.frames) != 2:
        raise Unclear("what changed is asked about something that is no pair")
    scenes = facts.sample.frames
    if (scenes[0].background, scenes[0].signs) != (scenes[1].background, scenes[1].signs):
        raise Unclear("the background or a sign changed as well")
    before, after = ({s.record.key: s for s in frame} for frame in facts.frames)
    found = [("removed", s) for k, s in before.items() if k not in after]
    found += [("added", s) for k, s in after.items() if k not in before]
    for key in before.keys() & after.keys():
        old, new = before[key].record, after[key].record
        if (old.concept, old.style, old.angle) != (new.concept, new.style, new.angle):
            raise Unclear("a thing became another one")
        if abs(old.x - new.x) > EPS or abs(old.y - new.y) > EPS:
            if abs(old.x - new.x) + abs(old.y - new.y) < APART:
                raise Unclear("a move that can hardly be seen")
            found.append(("moved", after[key]))
        if old.tint != new.tint:
            found.append(("recoloured", after[key]))
        if abs(old.size - new.size) > EPS:
            if max(old.size, new.size) < STRAIGHT * min(old.size, new.size):
                raise Unclear("a change of size that can hardly be seen")
            found.append(("grown" if new.size > old.size else "shrunk", after[key]))
    if [order(f, before.keys() & after.keys()) for f in facts.frames] != [
        order(facts.frames[0], before.keys() & after.keys())
    ] * 2:
        raise Unclear("the depth order changed as well")
    if len(found) != 1:
        raise Unclear(f"{len(found)} things changed")
    return found


def order(frame: list[Seen], keys: set[int]) -> list[int]:
    return [s.record.key for s in frame if s.record.key in keys]


def everywhere(facts: Facts, seen: Seen) -> None:
    """Raises `Unclear` unless the thing's name means it, well visible, in every frame that shows it, and nothing else."""
    for i, frame in enumerate(facts.frames):
        if any(s.record.key == seen.record.key for s in frame):
            facts.one(seen.record.concept, i)
        elif any(s.names & {seen.name} for s in frame):
            raise Unclear(f"{seen.name} means something else in frame {i}")


def shown(facts: Facts, seen: Seen) -> tuple[Seen, ...]:
    return tuple(s for frame in facts.frames for s in frame if s.record.key == seen.record.key)


@op("changed")
def changed(facts: Facts, query: Query, question: Question) -> Verdict:
    found = differences(facts)
    for _, seen in found:
        everywhere(facts, seen)
    sizes = {"grown", "shrunk"}
    wide = sizes if query["kind"] in sizes and "size" in question.text else {query["kind"]}
    return named([s for kind, s in found if kind in wide], *(n for _, s in found for n in shown(facts, s)))


@op("what_happened")
def what_happened(facts: Facts, query: Query, question: Question) -> Verdict:
    found = [(kind, s) for kind, s in differences(facts) if s.record.concept == query["concept"]]
    for _, seen in found:
        everywhere(facts, seen)
    needed = tuple(n.shown for _, s in found for n in shown(facts, s))
    return Verdict({kind for kind, _ in found}, needed=needed)


# Clips


def track(facts: Facts, concept: int) -> list[Seen | None]:
    """The thing of a concept in every frame, None where it is not. Raises `Unclear` if the name means several."""
    if facts.sample.kind != "clip" or len(facts.frames) < 2:
        raise Unclear("what happened is asked about something that is no clip")
    keys = {s.record.key for frame in facts.frames for s in frame if s.record.concept == concept}
    if len(keys) != 1:
        raise Unclear(f"the concept has {len(keys)} things in the clip")
    line = [next((s for s in frame if s.record.key in keys), None) for frame in facts.frames]
    everywhere(facts, next(s for s in line if s is not None))
    return line


@op("first")
def first(facts: Facts, query: Query, question: Question) -> Verdict:
    starts = []
    for key in ("a", "b"):
        line = track(facts, query[key])
        at = next(i for i, s in enumerate(line) if s is not None)
        if at == 0:
            raise Unclear("a thing that was there from the start never appeared")
        starts.append((at, line[at]))
    earliest = min(at for at, _ in starts)
    found = [s for at, s in starts if at == earliest and s is not None]
    return named(found, *(s for _, s in starts if s is not None))


@op("vanished")
def vanished(facts: Facts, query: Query, question: Question) -> Verdict:
    records = {s.record.key: s.record for frame in facts.frames for s in frame}
    gone = []
    for key, record in records.items():
        line = [any(s.record.key == key for s in frame) for frame in facts.frames]
        last = max(i for i, there in enumerate(line) if there)
        if last + 1 < len(line):
            gone.append(next(s for s in facts.frames[last] if s.record.key == key))
            track(facts, record.concept)
    return named(gone)


@op("moved")
def moved(facts: Facts, query: Query, question: Question) -> Verdict:
    line = [s for s in track(facts, query["concept"]) if s is not None]
    dx, dy = line[-1].x - line[0].x, line[-1].y - line[0].y
    valid = set()
    for name, (ux, uy) in MOVES.items():
        along, across = dx * ux + dy * uy, abs(dx * uy) + abs(dy * ux)
        if along >= APART - EPS and along * STRAIGHT > across:
            valid.add(name)
    return Verdict(valid, needed=(line[0].shown, line[-1].shown))


@op("swapped")
def swapped(facts: Facts, query: Query, question: Question) -> Verdict:
    line = [s for s in track(facts, query["concept"]) if s is not None]
    partners: dict[int, Seen] = {}
    for old, new in zip(facts.frames, facts.frames[1:], strict=False):
        mine = [next((s.record for s in f if s.record.key == line[0].record.key), None) for f in (old, new)]
        for then in old:
            now = next((s for s in new if s.record.key == then.record.key), None)
            if now is not None and None not in mine and then.record.key != line[0].record.key:
                a, b = mine
                assert a is not None and b is not None
                if at(a, now.record) and at(b, then.record) and not at(a, b):
                    partners[now.record.key] = now
    for seen in partners.values():
        track(facts, seen.record.concept)
    return named(partners.values())


def at(a: Thing, b: Thing) -> bool:
    """Whether two records stand at the same place."""
    return abs(a.x - b.x) < EPS and abs(a.y - b.y) < EPS
