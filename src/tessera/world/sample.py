"""Random sampling: which scene, pair or clip stands at an index.

Everything is a pure function of (world version, split, seed, index) and of the `WorldConfig`; nothing is kept, so memory does not
grow with the number of samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from tessera.world import concepts as table
from tessera.world.arrange import Room, place
from tessera.world.backgrounds import TINTS, sample_background
from tessera.world.panels import sample_panel
from tessera.world.rng import Rng
from tessera.world.scene import Background, Change, Scene, Sign, Thing
from tessera.world.text import SIGN_COLOURS, random_text, sign_aspect

ROTATED, MAX_ANGLE = 0.6, 20
TINTED = 0.25


def sample_scene(rng: Rng, room: Room, fewest: int = 1, most: int = 12, signs: float = 0.2) -> Scene:
    """A scene of things: free, with copies of one kind, from one category, or with an odd one out."""
    plan = rng.weighted(("free", "copies", "family", "odd"), (0.35, 0.35, 0.15, 0.15))
    n = rng.weighted(range(1, 13), (5, 9, 11, 11, 10, 9, 6, 4, 3, 2, 2, 2))
    n = min(max(n, fewest), most)
    if plan == "copies":
        copies = rng.integer(2, 6)
        kinds = [rng.choice(room.pool)] * copies + _kinds(rng, room, rng.integer(0, max(0, min(most, 8) - copies)))
    elif plan == "odd":
        kinds = _odd(rng, room, rng.integer(3, 6))
    elif plan == "family":
        members = rng.choice(sorted(room.families.values()))
        kinds = rng.pick(members, n)
    else:
        kinds = _kinds(rng, room, n)
    boards = _signs(rng, rng.integer(1, 2), (0.10, 0.16)) if rng.chance(signs) else ()
    things = place(rng, room, [_unplaced(rng, room, kind, key) for key, kind in enumerate(kinds[:most])], boards, [])
    return Scene(
        width=room.width, height=room.height, background=_background(rng, things), things=_depth(rng, things), signs=boards
    )


def sample_text(rng: Rng, room: Room) -> Scene:
    """A scene of one to four signs with at most two things."""
    count = rng.weighted((1, 2, 3, 4), (4, 3, 2, 1))
    boards = _signs(rng, count, (0.14, 0.24) if count < 3 else (0.12, 0.17))
    unplaced = [_unplaced(rng, room, kind, key) for key, kind in enumerate(_kinds(rng, room, rng.integer(0, 2)))]
    things = place(rng, room, unplaced, boards, [])
    return Scene(width=room.width, height=room.height, background=_background(rng, things), things=things, signs=boards)


def sample_chart(rng: Rng, room: Room) -> Scene:
    """A chart, table or receipt that fills most of the image."""
    return Scene(width=room.width, height=room.height, background=sample_background(rng), panel=sample_panel(rng))


def sample_pair(rng: Rng, room: Room) -> tuple[tuple[Scene, Scene], tuple[Change, ...]]:
    """Before and after: two scenes that differ in exactly one thing."""
    kind = rng.choice(("added", "removed", "moved", "recoloured", "grown", "shrunk"))
    while True:
        unplaced = [_unplaced(rng, room, c, key) for key, c in enumerate(_kinds(rng, room, rng.integer(2, 6)))]
        things = place(rng, room, unplaced, (), [])
        if len(things) < 2:
            continue
        things = _depth(rng, things)
        key = rng.choice(things).key
        other = _changed(rng, room, things, key, kind)
        if other is None:
            continue
        before, after = (other, things) if kind == "added" else (things, other)
        direction = _direction(before, after, key) if kind == "moved" else ""
        background = _background(rng, (*before, *after))
        frames = tuple(Scene(width=room.width, height=room.height, background=background, things=t) for t in (before, after))
        return (frames[0], frames[1]), (Change(kind=kind, key=key, direction=direction),)


def sample_clip(rng: Rng, room: Room, frames: int) -> tuple[tuple[Scene, ...], tuple[Change, ...]]:
    """A clip in which things appear, vanish, move or swap places; each thing takes part in one event at most."""
    while True:
        unplaced = [_unplaced(rng, room, c, key) for key, c in enumerate(_kinds(rng, room, rng.integer(2, 5)))]
        things = _depth(rng, place(rng, replace(room, crowded=0.0), unplaced, (), []))
        plans = rng.pick(("appears", "vanishes", "moves", "swaps"), 1 if len(things) < 4 else 2)
        keys = rng.shuffled([t.key for t in things])
        tracks: dict[int, list[Thing | None]] = {t.key: [t] * frames for t in things}
        changes: list[Change] = []
        for plan in plans:
            changes += _event(rng, room, plan, keys, tracks)
        states = [tuple(t for key in tracks if (t := tracks[key][f]) is not None) for f in range(frames)]
        if len({c.kind for c in changes}) < len(plans) or not all(states) or not all(_apart(room, s) for s in states):
            continue
        background = _background(rng, things)
        return tuple(Scene(width=room.width, height=room.height, background=background, things=s) for s in states), tuple(changes)


def _event(rng: Rng, room: Room, plan: str, keys: list[int], tracks: dict[int, list[Thing | None]]) -> list[Change]:
    """Writes one event into the tracks (per thing: what it is in each frame) and takes its things from `keys`.

    Empty if there are too few things left, or none can take part.
    """
    frames = len(next(iter(tracks.values())))
    wanted = {"appears": 2 if frames > 2 else 1, "vanishes": 1, "moves": 1, "swaps": 2}[plan]
    chosen = [keys.pop() for _ in range(min(wanted, len(keys)))]
    standing = [thing for key in chosen if (thing := tracks[key][0]) is not None]
    if len(standing) < wanted:
        return []
    if plan == "appears":
        moments = sorted(rng.pick(range(1, frames), wanted))
        for key, when in zip(chosen, moments, strict=True):
            tracks[key][:when] = [None] * when
        return [Change(kind="appears", key=key, frame=when) for key, when in zip(chosen, moments, strict=True)]
    if plan == "moves":
        thing = standing[0]
        ways = [
            (direction, length)
            for direction, (ux, uy) in sorted(_STEPS.items())
            for length in (0.5, 0.4, 0.3)
            if all(thing.size / 2 <= v <= 1 - thing.size / 2 for v in (thing.x + ux * length, thing.y + uy * length))
        ]
        if not ways:
            return []
        direction, length = rng.choice(ways)
        dx, dy = (unit * length / (frames - 1) for unit in _STEPS[direction])
        path = [replace(thing, x=thing.x + dx * f, y=thing.y + dy * f) for f in range(frames)]
        tracks[thing.key][:] = path
        return [Change(kind="moves", key=thing.key, direction=direction)]
    when = rng.integer(1, frames - 1)
    if plan == "vanishes":
        tracks[chosen[0]][when:] = [None] * (frames - when)
        return [Change(kind="vanishes", key=chosen[0], frame=when)]
    first, second = standing
    if abs(first.x - second.x) + abs(first.y - second.y) < 0.25:
        return []
    # Sizes go with the places, so that both find room.
    tracks[first.key][when:] = [replace(first, x=second.x, y=second.y, size=second.size)] * (frames - when)
    tracks[second.key][when:] = [replace(second, x=first.x, y=first.y, size=first.size)] * (frames - when)
    return [Change(kind="swaps", key=first.key, other=second.key, frame=when)]


_STEPS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}


def _apart(room: Room, things: tuple[Thing, ...]) -> bool:
    return all(room.free(thing, things[:i]) for i, thing in enumerate(things))


def _kinds(rng: Rng, room: Room, n: int) -> list[int]:
    """N different concepts; half of the time several from one category, so that negatives have hard neighbours."""
    if n > 1 and rng.chance(0.5):
        family = rng.pick(rng.choice(sorted(room.families.values())), rng.integer(1, n))
        rest = [c for c in rng.pick(room.pool, n) if c not in family]
        return rng.shuffled(family + rest[: n - len(family)])
    return rng.pick(room.pool, n)


def _odd(rng: Rng, room: Room, n: int) -> list[int]:
    """N concepts, all but one from the same category."""
    large = sorted(c for c, members in room.families.items() if len(members) >= n - 1)
    home = rng.choice(large)
    odd = rng.choice([c for c in room.pool if table.concepts()[c].category != home])
    return rng.shuffled([*rng.pick(room.families[home], n - 1), odd])


def _unplaced(rng: Rng, room: Room, concept: int, key: int) -> Thing:
    tint = None
    if rng.chance(TINTED):
        allowed = [
            t for t in TINTS if room.combinations == "all" or table.held_out(concept, t) == (room.combinations == "held-out")
        ]
        tint = rng.choice(allowed) if allowed else None
    angle = rng.integer(-MAX_ANGLE, MAX_ANGLE) if rng.chance(ROTATED) else 0
    return Thing(key=key, concept=concept, style=rng.choice(room.styles), x=0.5, y=0.5, size=0.0, angle=angle, tint=tint)


def _background(rng: Rng, things: Sequence[Thing]) -> Background:
    """A background in a colour that no thing is tinted in."""
    tints = {t.tint for t in things}
    while (background := sample_background(rng)).colour in tints:
        pass
    return background


def _signs(rng: Rng, count: int, heights: tuple[float, float]) -> tuple[Sign, ...]:
    """Boards one below the other at random heights, each in a colour of its own."""
    palettes = rng.pick(range(len(SIGN_COLOURS)), count)
    found: list[Sign] = []
    for palette in palettes:
        text = random_text(rng)
        for _ in range(12):
            height = rng.uniform(*heights)
            width = min(0.96, height * sign_aspect(text))
            x, y = rng.uniform(0.02, 0.98 - width), rng.uniform(0.02, 0.98 - height)
            if all(y + height + 0.02 < s.box[1] or s.box[3] + 0.02 < y for s in found):
                found.append(Sign(text=text, box=(x, y, x + width, y + height), palette=palette))
                break
    return tuple(found)


def _depth(rng: Rng, things: tuple[Thing, ...]) -> tuple[Thing, ...]:
    return tuple(rng.shuffled(things))


def _changed(rng: Rng, room: Room, things: tuple[Thing, ...], key: int, kind: str) -> tuple[Thing, ...] | None:
    """The things with one of them changed, or None where there is no room for the change."""
    old = next(t for t in things if t.key == key)
    rest = tuple(t for t in things if t.key != key)
    if kind in ("added", "removed"):
        return rest
    if kind == "recoloured":
        tints = [t for t in TINTS if t != old.tint and (room.combinations == "all" or not table.held_out(old.concept, t))]
        new = replace(old, tint=rng.choice(tints)) if tints else None
    elif kind == "moved":
        moved = place(rng, room, [replace(old, size=0.0)], (), list(rest), size=old.size)
        new = moved[0] if moved and abs(moved[0].x - old.x) + abs(moved[0].y - old.y) > 0.25 else None
    else:
        size = old.size * (1.45 if kind == "grown" else 0.68)
        fits = 0.14 <= size <= 0.6 and size / 2 <= min(old.x, old.y, 1 - old.x, 1 - old.y)
        new = replace(old, size=size) if fits and room.free(replace(old, size=size), rest) else None
    return None if new is None else tuple(new if t.key == key else t for t in things)


def _direction(before: tuple[Thing, ...], after: tuple[Thing, ...], key: int) -> str:
    old, new = (next(t for t in things if t.key == key) for things in (before, after))
    dx, dy = new.x - old.x, new.y - old.y
    return ("right" if dx > 0 else "left") if abs(dx) > abs(dy) else ("down" if dy > 0 else "up")
