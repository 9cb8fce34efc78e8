"""Captions of samples: one short sentence, everything that is there, and what a small child would say."""

from __future__ import annotations

from tessera.world.questions.facts import Facts, Frame, FrameThing, SampleLike
from tessera.world.questions.lexicon import Lexicon, world_lexicon
from tessera.world.questions.phrasing import (
    CAPTIONS,
    PANELS,
    TEXTURES,
    article,
    capital,
    enumerate_words,
    event_text,
    place,
)
from tessera.world.rng import Rng
from tessera.world.scene import Box, Change, Panel

_SHORT_THINGS = 3
_CHILD_THINGS = 3
_SHORT_EVENTS = 2
_BIG = 0.35  # the side from which a child calls a thing big, fraction of the image


def captions(sample: SampleLike, *, lexicon: Lexicon | None = None) -> dict[str, str]:
    """The captions of a sample: always the same for it.

    "short" is one sentence with the largest things; "dense" names everything with number, place, colour and
    style, the texts of signs and the data of a panel; "child" is a few very simple sentences. For pairs and
    clips all three say what happened.
    """
    facts = Facts(sample, lexicon or world_lexicon())
    rng = Rng("captions", sample.index)
    events = _events(facts)
    return {
        "short": _short(facts, rng, events),
        "dense": _dense(facts, events),
        "child": _child(facts, rng, events),
    }


def _say(key: str, **words: object) -> str:
    return CAPTIONS[key].format(**words)


def _groups(frame: Frame) -> list[list[FrameThing]]:
    """The things, those of one concept together, the group with the largest first."""
    groups: dict[int, list[FrameThing]] = {}
    for item in reversed(frame.by_side()):
        groups.setdefault(item.concept, []).append(item)
    return list(groups.values())


def _short(facts: Facts, rng: Rng, events: list[str]) -> str:
    frame = facts.frames[0]
    groups = _groups(frame)
    parts = []
    for group in groups[:_SHORT_THINGS]:
        name = group[0].name
        parts.append(_say("copies" if len(group) > 1 else "thing", a=article(name), name=name, n=len(group)))
    if len(groups) > _SHORT_THINGS:
        parts.append(_say("others"))
    signs, panel = frame.scene.signs, frame.scene.panel
    if signs:
        parts.append(_say("sign", text=signs[0].text) if len(signs) == 1 else _say("signs", n=len(signs)))
    if panel is not None:
        kind = PANELS[panel.kind]
        parts.append(_say("panel", a=article(kind), kind=kind, n=len(panel.values)))
    things = enumerate_words(parts or [_say("nothing")])
    colour = frame.scene.background.colour
    if rng.chance(0.5):
        caption = _say("background", things=things, a=article(colour), colour=colour)
    else:
        caption = _say("picture", things=things)
    if events:
        caption = _say("then", before=caption[:-1], events=enumerate_words(events[:_SHORT_EVENTS]))
    return capital(caption)


def _dense(facts: Facts, events: list[str]) -> str:
    frame = facts.frames[0]
    sentences: list[str] = []
    n = len(frame.items)
    if n:
        sentences.append(_say("total", n=n) if n > 1 else _say("total_one"))
    for group in _groups(frame):
        item = group[0]
        if len(group) == 1:
            name = item.name if item.tint is None else f"{item.tint} {item.name}"
            sentences.append(
                _say("dense_one", a=article(name), name=name, style=item.style, place=item.place),
            )
        else:
            places = enumerate_words([i.place for i in group])
            sentences.append(
                _say("dense_many", a=article(item.name), name=item.name, n=len(group), places=places),
            )
    colours = facts.lexicon.sign_colours
    for sign in frame.scene.signs:
        colour = colours[sign.palette % len(colours)]
        sentences.append(_say("dense_sign", a=article(colour), colour=colour, place=_place(sign.box), text=sign.text))
    if frame.scene.panel is not None:
        sentences += _panel(frame.scene.panel)
    background = frame.scene.background
    texture = TEXTURES.get(background.kind)
    if texture is None:
        sentences.append(_say("dense_plain", colour=background.colour))
    else:
        sentences.append(_say("dense_textured", colour=background.colour, texture=texture))
    sentences += [_say("event", event=event) for event in events]
    return " ".join(map(capital, sentences))


def _panel(panel: Panel) -> list[str]:
    kind = PANELS[panel.kind]
    data = [f"{label} {value}" for label, value in zip(panel.labels, panel.values, strict=True)]
    sentences = [_say("dense_panel", a=article(kind), kind=kind, place=_place(panel.box), data=enumerate_words(data))]
    if panel.title:
        sentences.append(_say("dense_title", title=panel.title))
    if panel.kind == "receipt":
        sentences.append(_say("dense_sum", value=sum(panel.values)))
    return sentences


def _child(facts: Facts, rng: Rng, events: list[str]) -> str:
    frame = facts.frames[0]
    sentences: list[str] = []
    groups = _groups(frame)[:_CHILD_THINGS]
    for group in groups:
        name = group[0].name
        sentences.append(_say("child_many" if len(group) > 1 else "child", a=article(name), name=name, n=len(group)))
    if groups and len(groups[0]) == 1 and groups[0][0].side >= _BIG:
        sentences.append(_say("child_size", name=groups[0][0].name))
    if frame.scene.signs:
        sentences.append(_say("child_sign"))
    if frame.scene.panel is not None:
        kind = PANELS[frame.scene.panel.kind]
        sentences.append(_say("child_panel", a=article(kind), kind=kind))
    if events:
        sentences += [_say("child_event", event=event) for event in events[:_SHORT_EVENTS]]
    elif not sentences or rng.chance(0.5):
        sentences.append(_say("child_background", colour=frame.scene.background.colour))
    return " ".join(sentences)


def _events(facts: Facts) -> list[str]:
    """What happened, in order of time, as clauses."""
    named = {item.key: item for frame in facts.frames for item in frame.items}
    clauses = []
    for change in sorted(facts.sample.changes, key=lambda c: c.frame):
        item = named.get(change.key)
        if item is not None:
            clauses.append(_clause(facts, change, item, named.get(change.other)))
    return clauses


def _clause(facts: Facts, change: Change, item: FrameThing, other: FrameThing | None) -> str:
    after = next((i for f in facts.frames[change.frame :] for i in f.items if i.key == change.key), item)
    return event_text(
        change.kind,
        item.name,
        other="" if other is None else other.name,
        direction=change.direction,
        colour=after.tint,
    )


def _place(box: Box) -> str:
    return place((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
