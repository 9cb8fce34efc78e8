"""Questions on hand-made samples with known answers, and on many drawn ones against an oracle of its own."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from tessera.errors import UserError
from tessera.world.questions import TYPES, Lexicon, generate
from tessera.world.questions.phrasing import PHRASES, article
from tessera.world.rng import Rng
from tessera.world.scene import Background, Change, Panel, Question, Scene, Sign, Thing, Truth

TINTS = ("red", "green", "blue", "yellow", "purple", "teal")
COLOURS = (*TINTS, "white", "black", "gray")
SIGN_COLOURS = ("white", "black", "yellow", "blue")
KINDS = {
    "animal": "dog cat cow horse pig wolf fox owl",
    "fruit": "apple pear plum lemon lime mango orange",
    "vehicle": "bus car taxi tram ship truck tractor",
    "sea animal": "shark whale crab squid fish",
    "tool": "axe saw key hook gear magnet",
}


@dataclass(frozen=True)
class Word:
    name: str
    category: str
    synonyms: tuple[str, ...] = ()

    @property
    def subcategory(self) -> str:
        return self.category + "s"


WORDS = [Word(name, kind) for kind, names in KINDS.items() for name in names.split()]
WORDS += [Word("fire engine", "vehicle"), Word("boat", "vehicle", ("ship",))]
ID = {word.name: i for i, word in enumerate(WORDS)}
LEXICON = Lexicon(WORDS, TINTS, COLOURS, SIGN_COLOURS)


@dataclass
class FakeSample:
    frames: tuple[Scene, ...]
    kind: str = "scene"
    changes: tuple[Change, ...] = ()
    pool: tuple[int, ...] = tuple(range(len(WORDS)))
    index: int = 0
    visible: dict[int, float] = field(default_factory=dict)

    def truth(self, frame: int) -> tuple[Truth, ...]:
        found = []
        for depth, t in enumerate(self.frames[frame].things):
            half = t.size / 2
            box = (max(0.0, t.x - half), max(0.0, t.y - half), min(1.0, t.x + half), min(1.0, t.y + half))
            word = WORDS[t.concept]
            found.append(
                Truth(
                    key=t.key,
                    concept=t.concept,
                    name=word.name,
                    synonyms=word.synonyms,
                    category=word.category,
                    subcategory=word.subcategory,
                    style=("noto", "twemoji")[t.style],
                    box=box,
                    centre=((box[0] + box[2]) / 2, (box[1] + box[3]) / 2),
                    area=(box[2] - box[0]) * (box[3] - box[1]),
                    depth=depth,
                    visible=self.visible.get(t.key, 1.0),
                    tint=t.tint,
                )
            )
        return tuple(found)


def thing(name: str, x: float, y: float, size: float = 0.2, **more: Any) -> Thing:
    return Thing(**{"key": 0, "concept": ID[name], "style": 0, "x": x, "y": y, "size": size} | more)


def scene(*things: Thing, **more: Any) -> Scene:
    numbered = tuple(t if t.key else replace(t, key=i) for i, t in enumerate(things))
    background = Background(kind="plain", colour="blue")
    return Scene(**{"width": 112, "height": 112, "background": background, "things": numbered} | more)


def one(*things: Thing, **more: Any) -> FakeSample:
    return FakeSample((scene(*things, **more),))


def ask(sample: FakeSample, *types: str, seeds: int = 60) -> list[Question]:
    """All different questions of the types over many streams."""
    found = {}
    for seed in range(seeds):
        for q in generate(sample, Rng("test", seed), types or None, lexicon=LEXICON):
            found[q.text, q.answer] = q
    return list(found.values())


def answers(sample: FakeSample, type: str, op: str, **query: Any) -> set[str]:
    """The answers given to one query."""
    return {q.answer for q in ask(sample, type, seeds=200) if dict(q.query) | query == dict(q.query) and q.asked("op") == op}


ROW = one(
    thing("dog", 0.15, 0.15, 0.2, tint="red"),
    thing("bus", 0.5, 0.5, 0.3, style=1),
    thing("apple", 0.85, 0.85, 0.14),
)


def test_every_type_is_registered_with_its_forms() -> None:
    names = "existence count total number relation position distance box at size attribute category odd"
    assert set(TYPES) == {*names.split(), "reading", "chart", "multihop", "change", "order"}
    for kind in TYPES.values():
        assert kind.forms
        assert kind.about


def test_unknown_type_is_refused() -> None:
    with pytest.raises(UserError, match="existence"):
        generate(ROW, Rng(1), ["existance"], lexicon=LEXICON)


@pytest.mark.parametrize(
    ("type", "op", "query", "answer"),
    [
        ("existence", "exists", {"concept": ID["dog"]}, "yes"),
        ("existence", "exists", {"concept": ID["cat"]}, "no"),
        ("total", "total", {}, "3"),
        ("count", "count", {"concept": ID["bus"]}, "1"),
        ("count", "count_category", {"category": "animal"}, "1"),
        ("relation", "beside", {"concept": ID["bus"], "direction": "left"}, "dog"),
        ("relation", "beside", {"concept": ID["bus"], "direction": "below"}, "apple"),
        ("relation", "is_beside", {"a": ID["dog"], "b": ID["bus"], "direction": "above"}, "yes"),
        ("relation", "is_beside", {"a": ID["dog"], "b": ID["bus"], "direction": "right"}, "no"),
        ("position", "where", {"concept": ID["dog"]}, "top left"),
        ("position", "where", {"concept": ID["bus"]}, "center"),
        ("distance", "farthest", {"concept": ID["dog"]}, "apple"),
        ("distance", "nearest", {"concept": ID["dog"]}, "bus"),
        ("box", "box", {"concept": ID["dog"]}, "05 05 24 24"),
        ("at", "at_box", {"box": (5, 5, 24, 24)}, "dog"),
        ("size", "largest", {}, "bus"),
        ("size", "smallest", {}, "apple"),
        ("size", "larger", {"a": ID["dog"], "b": ID["bus"]}, "bus"),
        ("size", "smaller", {"a": ID["bus"], "b": ID["dog"]}, "dog"),
        ("attribute", "tint", {"concept": ID["dog"]}, "red"),
        ("attribute", "style", {"concept": ID["bus"]}, "twemoji"),
        ("attribute", "background", {}, "blue"),
        ("category", "category_largest", {}, "vehicle"),
        ("multihop", "count_beside", {"concept": ID["dog"], "direction": "right"}, "2"),
        ("multihop", "count_beside", {"concept": ID["dog"], "direction": "left"}, "0"),
        ("multihop", "category_beside", {"concept": ID["bus"], "direction": "right"}, "fruit"),
    ],
)
def test_answers_in_a_row_of_three(type: str, op: str, query: dict[str, Any], answer: str) -> None:
    assert answers(ROW, type, op, **query) == {answer}


def test_regions_odd_number_and_tint_of_the_nearest() -> None:
    sample = one(
        thing("dog", 0.2, 0.2),
        thing("cat", 0.8, 0.3),
        thing("bus", 0.3, 0.8, tint="teal"),
        thing("cow", 0.9, 0.9),
    )
    assert answers(sample, "at", "at_region", region="top left") == {"dog"}
    assert answers(sample, "category", "category_region", region="bottom left") == {"vehicle"}
    assert answers(sample, "odd", "odd") == {"bus"}
    near = one(thing("dog", 0.2, 0.2), thing("bus", 0.3, 0.4, tint="teal"), thing("cow", 0.9, 0.9))
    assert answers(near, "multihop", "tint_nearest", concept=ID["dog"]) == {"teal"}
    many = one(thing("dog", 0.2, 0.2), thing("dog", 0.8, 0.2), thing("cat", 0.5, 0.8))
    assert answers(many, "number", "more") == {"dog"}
    assert {q.asked("a") for q in ask(many, "number")} == {ID["dog"], ID["cat"]}
    assert answers(many, "count", "count", concept=ID["dog"]) == {"2"}


def test_a_name_must_be_unambiguous() -> None:
    twins = one(thing("dog", 0.2, 0.2), thing("dog", 0.8, 0.2), thing("cat", 0.5, 0.8))
    for q in ask(twins, "relation", "position", "box", "attribute", "at", "size"):
        assert ID["dog"] not in [value for key, value in q.query if key in ("concept", "a", "b")]
        assert q.answer != "dog"
    synonyms = one(thing("ship", 0.2, 0.2), thing("boat", 0.8, 0.8))
    assert not ask(synonyms, "relation", "position", "box", "at", "size", "multihop")
    lone = one(thing("ship", 0.2, 0.2), thing("dog", 0.8, 0.8))
    assert all(q.asked("concept") != ID["boat"] for q in ask(lone, "existence", seeds=400))


@pytest.mark.parametrize(
    ("sample", "op"),
    [
        (one(thing("dog", 0.3, 0.5), thing("cat", 0.39, 0.5)), "beside"),
        (one(thing("dog", 0.3, 0.5), thing("cat", 0.39, 0.5)), "is_beside"),
        (
            one(
                thing("dog", 0.3, 0.3),
                thing("cat", 0.5, 0.3),
                thing("cow", 0.1, 0.3, 0.2),
                thing("pig", 0.12, 0.3),
            ),
            "count_beside",
        ),
        (one(thing("dog", 0.35, 0.5)), "where"),
        (one(thing("dog", 0.2, 0.2), thing("cat", 0.53, 0.8)), "at_region"),
        (one(thing("dog", 0.2, 0.2, 0.2), thing("cat", 0.8, 0.8, 0.23)), "largest"),
        (one(thing("dog", 0.2, 0.2, 0.2), thing("cat", 0.8, 0.8, 0.23)), "larger"),
        (one(thing("dog", 0.5, 0.5), thing("cat", 0.2, 0.5), thing("cow", 0.8, 0.5)), "nearest"),
        (one(thing("dog", 0.5, 0.5, 0.3), thing("cat", 0.5, 0.52, 0.28)), "at_box"),
    ],
)
def test_nothing_is_asked_within_the_margins(sample: FakeSample, op: str) -> None:
    asked = [q for q in ask(sample) if q.asked("op") == op]
    if op == "count_beside":
        asked = [q for q in asked if q.asked("concept") in (ID["cow"], ID["pig"])]
        asked = [q for q in asked if q.asked("direction") in ("left", "right")]
    if op == "nearest":
        asked = [q for q in asked if q.asked("concept") == ID["dog"]]
    assert not asked


def test_what_is_hidden_is_not_asked_about() -> None:
    sample = one(thing("dog", 0.2, 0.2), thing("cat", 0.5, 0.5), thing("cow", 0.8, 0.8))
    sample.visible = {1: 0.4}
    found = ask(sample)
    for q in found:
        assert ID["cat"] not in [v for k, v in q.query if k in ("concept", "a", "b")] or q.answer == "no"
        assert q.answer != "cat"
        assert q.type not in ("count", "total", "number", "odd")
    assert not [q for q in found if q.type == "existence" and q.asked("concept") == ID["cat"]]


def test_signs() -> None:
    signs = (
        Sign(text="OPEN", box=(0.1, 0.1, 0.4, 0.2), palette=0),
        Sign(text="B42", box=(0.1, 0.4, 0.4, 0.5), palette=2),
        Sign(text="EXIT", box=(0.1, 0.7, 0.4, 0.8), palette=3),
    )
    single = one(signs=signs[:1])
    assert {q.text for q in ask(single, "reading")} == set(PHRASES["read"])
    assert {q.answer for q in ask(single, "reading")} == {"OPEN"}
    for q in ask(single, "reading"):
        assert len(set(q.distractors)) == 3
        assert "OPEN" not in q.distractors
    several = one(signs=signs)
    assert answers(several, "reading", "read", sign=1) == {"B42"}
    yellow = [q for q in ask(several, "reading") if q.asked("sign") == 1]
    assert all("yellow" in q.text for q in yellow)
    assert {q.form for q in yellow} == {"open", "choice"}
    same = one(signs=(signs[0], replace(signs[1], palette=0)))
    assert not ask(same, "reading")
    beside = ask(one(thing("dog", 0.8, 0.2), thing("cat", 0.8, 0.8), signs=signs[:1]), "relation", "at")
    assert not [q for q in beside if q.text.startswith("What")]


def panel(kind: Any, *values: int, **more: Any) -> FakeSample:
    labels = ("TEA", "MILK", "JAM", "RICE")[: len(values)]
    colours = COLOURS[: len(values)]
    data = {"kind": kind, "labels": labels, "values": values, "colours": colours, "box": (0.1, 0.1, 0.9, 0.9)}
    return one(panel=Panel(**data | more))


def test_charts() -> None:
    bars = panel("bar", 10, 40, 25)
    assert answers(bars, "chart", "value", label="MILK") == {"40"}
    assert answers(bars, "chart", "highest") == {"MILK"}
    assert answers(bars, "chart", "lowest") == {"TEA"}
    assert answers(bars, "chart", "value_colour", colour="blue") == {"25"}
    assert any("blue bar" in q.text for q in ask(bars, "chart"))
    assert any("slice" in q.text for q in ask(panel("pie", 60, 40), "chart"))
    assert answers(panel("receipt", 3, 4, 5), "chart", "sum") == {"12"}
    assert not answers(panel("bar", 99, 98, 10), "chart", "highest")
    assert answers(panel("table", 99, 98, 10), "chart", "highest") == {"TEA"}
    assert not answers(panel("table", 99, 99, 10), "chart", "highest")
    assert not answers(panel("bar", 1, 2, 3, colours=("red",) * 3), "chart", "value_colour")
    assert not answers(panel("line", 1, 20, 30), "chart", "value_colour")


def pair(before: Scene, after: Scene, kind: str, key: int) -> FakeSample:
    return FakeSample((before, after), kind="pair", changes=(Change(kind=kind, key=key),))


def test_changes_of_pairs() -> None:
    dog, cat, bus = (
        thing("dog", 0.2, 0.2, key=1),
        thing("cat", 0.8, 0.2, key=2),
        thing("bus", 0.5, 0.8, key=3),
    )
    full = scene(dog, cat, bus)
    cases = {
        "added": (scene(dog, cat), full),
        "removed": (full, scene(dog, cat)),
        "moved": (full, scene(dog, cat, replace(bus, x=0.2))),
        "recoloured": (full, scene(dog, cat, replace(bus, tint="red"))),
        "grown": (full, scene(dog, cat, replace(bus, size=0.4))),
        "shrunk": (full, scene(dog, cat, replace(bus, size=0.1))),
    }
    for kind, frames in cases.items():
        sample = pair(*frames, kind, 3)
        assert answers(sample, "change", "changed", kind=kind) == {"bus"}
        assert answers(sample, "change", "what_happened", concept=ID["bus"]) == {kind}
        assert {q.type for q in ask(sample)} == {"change"}
    twice = pair(scene(dog, cat), scene(dog, cat, replace(dog, key=4, x=0.6)), "added", 4)
    assert not ask(twice)


def clip(states: list[Scene], *changes: Change) -> FakeSample:
    return FakeSample(tuple(states), kind="clip", changes=changes)


def test_order_of_clips() -> None:
    dog, cat, bus = (
        thing("dog", 0.2, 0.2, key=1),
        thing("cat", 0.8, 0.2, key=2),
        thing("bus", 0.5, 0.8, key=3),
    )
    appear = clip(
        [scene(bus), scene(bus, cat), scene(bus, cat, dog)],
        Change(kind="appears", key=1, frame=2),
        Change(kind="appears", key=2, frame=1),
    )
    assert answers(appear, "order", "first") == {"cat"}
    assert {q.asked("a") for q in ask(appear, "order")} == {ID["dog"], ID["cat"]}
    vanish = clip([scene(dog, cat), scene(dog, cat), scene(dog)], Change(kind="vanishes", key=2, frame=2))
    assert answers(vanish, "order", "vanished") == {"cat"}
    move = clip(
        [scene(dog, replace(bus, x=x)) for x in (0.2, 0.5, 0.8)],
        Change(kind="moves", key=3, direction="right"),
    )
    assert answers(move, "order", "moved", concept=ID["bus"]) == {"right"}
    lies = clip([scene(dog, replace(bus, x=x)) for x in (0.2, 0.5, 0.8)], Change(kind="moves", key=3, direction="up"))
    assert not ask(lies)
    swap = clip(
        [scene(dog, cat, bus), scene(replace(dog, x=0.8), replace(cat, x=0.2), bus)],
        Change(kind="swaps", key=1, other=2),
    )
    assert answers(swap, "order", "swapped", concept=ID["dog"]) == {"cat"}
    assert answers(swap, "order", "swapped", concept=ID["cat"]) == {"dog"}


@pytest.mark.parametrize(
    "sample",
    [
        one(),
        one(thing("dog", 0.5, 0.5, 1.0)),
        one(thing("dog", 0.0, 0.0, 0.2), thing("cat", 1.0, 1.0, 0.2)),
        one(*[thing("dog", 0.5, 0.5)] * 12),
        one(*[thing(w.name, 0.5, 0.5) for w in WORDS[:12]]),
        one(*[thing(w.name, (i % 4) / 4 + 0.1, i // 4 / 4 + 0.1, 0.1) for i, w in enumerate(WORDS[:12])]),
        replace(one(thing("dog", 0.5, 0.5), thing("cat", 0.1, 0.1)), pool=()),
        replace(one(thing("dog", 0.5, 0.5), thing("cat", 0.1, 0.1)), pool=(0,)),
        FakeSample((scene(),) * 2, kind="pair"),
        FakeSample((scene(),) * 2, kind="pair", changes=(Change(kind="added", key=7),)),
        FakeSample((scene(),) * 16, kind="clip", changes=(Change(kind="vanishes", key=7, frame=40),)),
        FakeSample(
            (scene(thing("dog", 0.5, 0.5, key=1)),) * 2,
            kind="clip",
            changes=(Change(kind="vanishes", key=1),),
        ),
        FakeSample((scene(thing("dog", 0.5, 0.5, key=1)),) * 2, kind="clip", changes=(Change(kind="swaps", key=1),)),
        one(panel=Panel(kind="pie", labels=("TEA",), values=(100,), colours=("red",), box=(0, 0, 1, 1))),
        one(panel=Panel(kind="table", labels=(), values=(), colours=(), box=(0, 0, 1, 1))),
        one(panel=Panel(kind="receipt", labels=("A", "A"), values=(0, 0), colours=("red", "red"), box=(0, 0, 1, 1))),
        one(signs=(Sign(text="7", box=(0.1, 0.1, 0.3, 0.2), palette=9),)),
    ],
)
def test_odd_samples_raise_nothing(sample: FakeSample) -> None:
    for q in ask(sample, seeds=20):
        assert q.answer not in q.distractors


@pytest.mark.parametrize(
    ("word", "expected"),
    [("dog", "a"), ("apple", "an"), ("unicorn", "a"), ("umbrella", "an"), ("hourglass", "an")],
)
def test_article(word: str, expected: str) -> None:
    assert article(word) == expected
