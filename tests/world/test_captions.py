"""Captions of hand-made samples."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import pytest

from tessera.world.captions import captions
from tessera.world.questions import Lexicon, template_words
from tessera.world.scene import Background, Change, Panel, Scene, Sign, Thing, Truth


@dataclass(frozen=True)
class Word:
    name: str
    category: str = "thing"
    subcategory: str = "thing"
    synonyms: tuple[str, ...] = ()


NAMES = ("dog", "apple", "fire engine", "cat", "bus", "saw")
LEXICON = Lexicon([Word(n) for n in NAMES], ("red",), ("blue", "red", "orange"), ("white", "yellow"))


@dataclass
class FakeSample:
    frames: tuple[Scene, ...]
    kind: str = "scene"
    changes: tuple[Change, ...] = ()
    pool: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    index: int = 0

    def truth(self, frame: int) -> list[Truth]:
        return [
            Truth(
                key=t.key,
                concept=t.concept,
                name=NAMES[t.concept],
                synonyms=(),
                category="thing",
                subcategory="thing",
                style=("noto", "twemoji")[t.style],
                box=(t.x - t.size / 2, t.y - t.size / 2, t.x + t.size / 2, t.y + t.size / 2),
                centre=(t.x, t.y),
                area=t.size**2,
                depth=depth,
                visible=1.0,
                tint=t.tint,
            )
            for depth, t in enumerate(self.frames[frame].things)
        ]


def thing(name: str, x: float, y: float, size: float = 0.2, *, key: int = 0, **more: Any) -> Thing:
    return Thing(key=key, concept=NAMES.index(name), style=0, x=x, y=y, size=size, **more)


def scene(*things: Thing, kind: Any = "plain", **more: Any) -> Scene:
    return Scene(width=112, height=112, background=Background(kind=kind, colour="orange"), things=things, **more)


def both(sample: FakeSample) -> list[dict[str, str]]:
    """The captions under several indices, so that every phrasing occurs."""
    found = []
    for index in range(12):
        sample.index = index
        found.append(captions(sample, lexicon=LEXICON))
        assert captions(sample, lexicon=LEXICON) == found[-1]
    return found


def test_short_names_the_largest_things() -> None:
    sample = FakeSample((scene(thing("dog", 0.2, 0.2, 0.1), thing("apple", 0.5, 0.5, 0.4)),))
    assert {c["short"] for c in both(sample)} == {
        "A picture of an apple and a dog.",
        "An apple and a dog on an orange background.",
    }


def test_many_things_and_copies() -> None:
    dogs = [thing("dog", x, 0.2, 0.3) for x in (0.2, 0.5, 0.8)]
    rest = [thing(n, 0.5, 0.8, 0.1) for n in ("apple", "cat", "bus")]
    caption = both(FakeSample((scene(*dogs, *rest),)))[0]
    assert "a dog 3 times" in caption["short"].lower()
    assert "other objects" in caption["short"]
    assert "There are 6 objects." in caption["dense"]
    assert "A dog appears 3 times, at the " in caption["dense"]
    assert "It is there 3 times." in caption["child"]


def test_dense_tells_everything() -> None:
    sign = Sign(text="OPEN 24", box=(0.1, 0.7, 0.3, 0.9), palette=1)
    apple = thing("apple", 0.9, 0.5, tint="red")
    caption = captions(FakeSample((scene(apple, kind="dots", signs=(sign,)),)), lexicon=LEXICON)
    assert caption["dense"] == (
        "There is one object. A red apple in noto style is at the right. "
        "A yellow sign at the bottom left says OPEN 24. The background is orange with dots."
    )


def test_panel_data() -> None:
    panel = Panel(
        kind="receipt",
        labels=("TEA", "JAM"),
        values=(3, 4),
        colours=("red", "blue"),
        box=(0, 0, 1, 1),
        title="SHOP",
    )
    caption = both(FakeSample((scene(panel=panel),), kind="chart"))[0]
    assert "A receipt at the center shows TEA 3 and JAM 4. Its title is SHOP. The total is 7." in caption["dense"]
    assert "receipt with 2 values" in caption["short"]
    assert "Here is a receipt." in caption["child"]


@pytest.mark.parametrize(
    ("kind", "clause"),
    [
        ("added", "a dog was added"),
        ("removed", "the dog was removed"),
        ("moved", "the dog moved to the left"),
        ("recoloured", "the dog turned red"),
        ("grown", "the dog became larger"),
        ("shrunk", "the dog became smaller"),
        ("vanishes", "the dog vanished"),
        ("swaps", "the dog and the cat swapped places"),
    ],
)
def test_what_happened(kind: str, clause: str) -> None:
    cat = thing("cat", 0.5, 0.5, key=1)
    dog = thing("dog", 0.2, 0.2, key=2)
    after = thing("dog", 0.1, 0.2, key=2, tint="red")
    frames = (
        scene(cat) if kind == "added" else scene(cat, dog),
        scene(cat) if kind in ("removed", "vanishes") else scene(cat, after),
    )
    change = Change(kind=kind, key=2, other=1, direction="left" if kind == "moved" else "")
    for caption in both(FakeSample(frames, kind="pair", changes=(change,))):
        assert caption["short"].endswith(f", and then {clause}.")
        assert f"Then {clause}." in caption["dense"]
        assert f"Look, {clause}." in caption["child"]


def test_empty_samples_and_known_words() -> None:
    samples = [
        FakeSample((scene(),)),
        FakeSample((scene(),) * 3, kind="clip", changes=(Change(kind="appears", key=9),)),
        FakeSample((scene(*[thing(n, 0.5, 0.5, 0.4) for n in NAMES], kind="noise"),)),
        FakeSample((scene(signs=(Sign(text="A1", box=(0, 0, 1, 1)),) * 2),), kind="text"),
    ]
    known = template_words() | {w for n in NAMES for w in n.split()} | {"blue", "red", "orange", "white", "A"}
    for sample in samples:
        for caption in both(sample):
            assert set(caption) == {"short", "dense", "child"}
            for text in caption.values():
                assert text.endswith(".")
                assert text[0].isupper() or text[0].isdigit()
                assert "{" not in text
                assert {w for w in re.findall(r"[A-Za-z]+", text) if not w.isupper()} <= known
