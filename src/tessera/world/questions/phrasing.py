"""The words of questions, rationales and captions: fixed short templates, and how choices are appended.

A template's placeholders stand in braces. Where a picture holds signs or a panel, "What is left of the dog?"
could mean them too; so the first phrasing of such a question says "object", and only that one is used there
(`phrase(..., first=True)`).
"""

from __future__ import annotations

import functools
import re

from tessera.world.rng import Rng

POSITIONS = (
    ("top left", "top", "top right"),
    ("left", "center", "right"),
    ("bottom left", "bottom", "bottom right"),
)  # fmt: skip
DIRECTION_WORDS = {"left": "left of", "right": "right of", "above": "above", "below": "below"}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
MOVES = ("left", "right", "up", "down")
MOVE_WORDS = {"left": "to the left", "right": "to the right", "up": "up", "down": "down"}
CHANGES = ("added", "removed", "moved", "recoloured", "grown", "shrunk")

PHRASES: dict[str, tuple[str, ...]] = {
    "exists": (
        "Is there {a} {name}?",
        "Is there {a} {name} in the picture?",
        "Does the picture show {a} {name}?",
    ),
    "count": ("How many times does the {name} appear?", "How often does the {name} appear?"),
    "count_category": (
        "How many objects are of the kind {kind}?",
        "How many objects of the kind {kind} are there?",
    ),
    "total": ("How many objects are there?", "How many objects are in the picture?"),
    "more": (
        "Which appears more often, the {a} or the {b}?",
        "Which is there more often, the {a} or the {b}?",
    ),
    "beside": ("Which object is {direction} the {name}?", "What is {direction} the {name}?"),
    "is_beside": ("Is the {a} {direction} the {b}?",),
    "where": ("Where is the {name}?", "In which part of the picture is the {name}?"),
    "nearest": ("Which object is nearest to the {name}?", "Which object is closest to the {name}?"),
    "farthest": ("Which object is farthest from the {name}?",),
    "larger": ("Which is larger, the {a} or the {b}?", "Which is bigger, the {a} or the {b}?"),
    "smaller": ("Which is smaller, the {a} or the {b}?",),
    "largest": ("What is the largest object?", "Which object is the largest?"),
    "smallest": ("What is the smallest object?", "Which object is the smallest?"),
    "tint": ("What colour is the {name}?", "Which colour does the {name} have?"),
    "style": ("In which style is the {name} drawn?", "What is the style of the {name}?"),
    "background": ("What colour is the background?", "Which colour does the background have?"),
    "category_region": ("What kind of object is in the {region}?", "What kind of thing is in the {region}?"),
    "category_largest": (
        "What kind of object is the largest one?",
        "What kind of thing is the largest object?",
    ),
    "odd": ("Which object is the odd one out?", "Which object does not belong to the others?"),
    "read": ("What does the sign say?", "What is written on the sign?"),
    "read_colour": ("What does the {colour} sign say?", "What is written on the {colour} sign?"),
    "value": ("What is the value of {label}?", "Which value does {label} have?"),
    "price": ("What is the price of {label}?", "What is the value of {label}?"),
    "value_colour": (
        "What is the value of the {colour} {mark}?",
        "Which value does the {colour} {mark} have?",
    ),
    "highest": ("Which has the highest value?", "What has the highest value?"),
    "lowest": ("Which has the lowest value?", "What has the lowest value?"),
    "sum": ("What is the total?", "What is the sum of all prices?"),
    "box": ("Give the box of the {name}.", "What is the box of the {name}?"),
    "at_box": ("Which object is in the box {box}?", "What is in the box {box}?"),
    "at_region": ("Which object is in the {region}?", "What is in the {region}?"),
    "count_beside": ("How many objects are {direction} the {name}?",),
    "tint_nearest": ("What colour is the object nearest to the {name}?",),
    "category_beside": (
        "What kind of object is {direction} the {name}?",
        "What kind of thing is {direction} the {name}?",
    ),
    "changed_added": ("What was added?", "Which object was added?"),
    "changed_removed": ("What was removed?", "Which object was removed?"),
    "changed_moved": ("What moved?", "Which object moved?"),
    "changed_recoloured": ("What changed its colour?", "Which object changed its colour?"),
    "changed_grown": ("What changed its size?", "Which object became larger?"),
    "changed_shrunk": ("What changed its size?", "Which object became smaller?"),
    "what_happened": ("What happened to the {name}?",),
    "first": ("Which appeared first, the {a} or the {b}?",),
    "vanished": ("What vanished?", "Which object vanished?"),
    "moved": ("In which direction did the {name} move?", "Where did the {name} move to?"),
    "swapped": ("What swapped places with the {name}?", "Which object swapped places with the {name}?"),
}

REASONS: dict[str, str] = {
    "exists": "There is {a} {name} at the {place}.",
    "absent": "No {name} is in the picture.",
    "count": "The {name} appears {n} times.",
    "count_one": "The {name} appears one time.",
    "count_category": "Of the kind {kind} there are: {names}.",
    "total": "There are {n} objects in the picture.",
    "total_one": "There is one object in the picture.",
    "more": "The {a} appears more often than the {b}, {n} to {m}.",
    "beside": "The {a} is {direction} the {b}.",
    "where": "The center of the {name} is at the {place} of the picture.",
    "nearest": "No other object is nearer to the {b} than the {a}.",
    "farthest": "No other object is farther from the {b} than the {a}.",
    "larger": "The {a} is larger than the {b}.",
    "smaller": "The {a} is smaller than the {b}.",
    "largest": "The {a} at the {place} is larger than all other objects.",
    "smallest": "The {a} at the {place} is smaller than all other objects.",
    "tint": "The {name} at the {place} is {colour}.",
    "style": "The {name} at the {place} is drawn in {style} style.",
    "background": "The background is {colour}.",
    "category": "The {name} at the {place} is of the kind {kind}.",
    "odd": "The {name} is of the kind {kind} and all others are of the kind {other}.",
    "read": "The {colour} sign says {text}.",
    "value": "{label} has the value {value}.",
    "value_colour": "The {colour} {mark} stands for {label} and has the value {value}.",
    "highest": "{label} has the value {value} and all others have less.",
    "lowest": "{label} has the value {value} and all others have more.",
    "sum": "The sum of {values} is {value}.",
    "box": "The {name} is in the box {box}.",
    "at_region": "The {name} is in the {region}.",
    "count_beside": "{direction} the {name}: {names}.",
    "count_beside_none": "No object is {direction} the {name}.",
    "tint_nearest": "The {a} is nearest to the {b}, and the {a} is {colour}.",
    "category_beside": "The {a} is {direction} the {b}, and the {a} is of the kind {kind}.",
    "change": "Then {event}.",
    "first": "The {a} appeared before the {b}.",
}

EVENTS: dict[str, str] = {
    "added": "{a} {name} was added",
    "removed": "the {name} was removed",
    "moved": "the {name} moved {direction}",
    "moved_away": "the {name} moved",
    "recoloured": "the {name} turned {colour}",
    "recoloured_back": "the {name} changed its colour",
    "grown": "the {name} became larger",
    "shrunk": "the {name} became smaller",
    "appears": "{a} {name} appeared",
    "vanishes": "the {name} vanished",
    "moves": "the {name} moved {direction}",
    "moves_away": "the {name} moved",
    "swaps": "the {name} and the {other} swapped places",
}

CAPTIONS: dict[str, str] = {
    "picture": "A picture of {things}.",
    "background": "{things} on {a} {colour} background.",
    "nothing": "an empty picture",
    "others": "other objects",
    "thing": "{a} {name}",
    "copies": "{a} {name} {n} times",
    "sign": "a sign that says {text}",
    "signs": "{n} signs",
    "panel": "{a} {kind} with {n} values",
    "then": "{before}, and then {events}.",
    "first_picture": "First, {caption}",
    "total": "There are {n} objects.",
    "total_one": "There is one object.",
    "dense_one": "{a} {name} in {style} style is at the {place}.",
    "dense_many": "{a} {name} appears {n} times, at the {places}.",
    "dense_sign": "{a} {colour} sign at the {place} says {text}.",
    "dense_panel": "{a} {kind} at the {place} shows {data}.",
    "dense_title": "Its title is {title}.",
    "dense_sum": "The total is {value}.",
    "dense_plain": "The background is {colour}.",
    "dense_textured": "The background is {colour} with {texture}.",
    "event": "Then {event}.",
    "child": "Here is {a} {name}.",
    "child_many": "Here is {a} {name}. It is there {n} times.",
    "child_sign": "Here is a sign.",
    "child_panel": "Here is {a} {kind}.",
    "child_size": "The {name} is big.",
    "child_background": "It is all on {colour}.",
    "child_event": "Look, {event}.",
}
PANELS = {
    "bar": "bar chart",
    "line": "line chart",
    "pie": "pie chart",
    "table": "table",
    "receipt": "receipt",
}
TEXTURES = {
    "gradient": "a gradient",
    "stripes": "stripes",
    "dots": "dots",
    "checks": "checks",
    "noise": "noise",
}

_OTHER_WORDS = "a an and at the Choose yes no noto twemoji bar slice above below left right of top bottom center"
_SOUNDS_CONSONANT = ("uni", "ufo", "use", "uter", "euro", "eu", "ewe", "one", "once", "ukulele", "ural")
_SOUNDS_VOWEL = ("hour", "honest", "honor", "honour", "heir", "x-ray")
_WORD = re.compile(r"[A-Za-z]+(?:-[A-Za-z]+)*")


@functools.cache
def article(word: str) -> str:
    """ "a" or "an", by the sound that a word begins with."""
    lower = word.lower()
    if lower.startswith(_SOUNDS_VOWEL):
        return "an"
    return "an" if lower[:1] in "aeiou" and not lower.startswith(_SOUNDS_CONSONANT) else "a"


def capital(text: str) -> str:
    """The text with its first letter in upper case, the others as they are."""
    return text[:1].upper() + text[1:]


def enumerate_words(words: list[str]) -> str:
    """ "a dog, a cat and a bus"."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1] if words else ""


def place(x: float, y: float) -> str:
    """The name of the ninth of the picture in which a point lies."""
    return POSITIONS[min(2, int(y * 3))][min(2, int(x * 3))]


def phrase(rng: Rng, key: str, *, first: bool = False, **words: object) -> str:
    """One of the phrasings of a question (the first if `first`), filled in."""
    templates = PHRASES[key]
    template = templates[0] if first or len(templates) == 1 else rng.choice(templates)
    return template.format(**words)


def reason(key: str, **words: object) -> str:
    """A rationale, filled in; it begins with an upper-case letter."""
    return capital(REASONS[key].format(**words))


def event_text(kind: str, name: str, *, other: str = "", direction: str = "", colour: str | None = None) -> str:
    """What happened, as a clause without capital and full stop: "the dog moved to the left"."""
    if kind in ("moved", "moves") and direction not in MOVE_WORDS:
        kind += "_away"
    if kind == "recoloured" and colour is None:
        kind = "recoloured_back"
    words = {
        "a": article(name),
        "name": name,
        "other": other,
        "colour": colour,
        "direction": MOVE_WORDS.get(direction),
    }
    return EVENTS[kind].format(**words)


@functools.cache
def template_words() -> frozenset[str]:
    """Every word that questions, rationales and captions can contain besides names, categories, colours, sign
    and panel texts.

    Words are as they are written: "Is" at the start of a sentence and "is" inside are two. Digits and
    punctuation are not in it.
    """
    texts = [t for group in PHRASES.values() for t in group]
    texts += [*REASONS.values(), *EVENTS.values(), *CAPTIONS.values(), *PANELS.values(), *TEXTURES.values()]
    texts += [
        *(p for row in POSITIONS for p in row),
        *DIRECTION_WORDS.values(),
        *MOVE_WORDS.values(),
        *MOVES,
        *CHANGES,
        _OTHER_WORDS,
    ]
    words: set[str] = set()
    for text in texts:
        found = _WORD.findall(re.sub(r"\{\w+\}", " ", text))
        words.update(found)
    # A template, a place or an event can stand at the start of a sentence.
    words.update(
        [
            capital(w)
            for w in (
                *_WORD.findall(" ".join([*EVENTS.values(), *DIRECTION_WORDS.values()])),
                "a",
                "an",
                "the",
                "other",
            )
        ]
    )
    return frozenset(words)
