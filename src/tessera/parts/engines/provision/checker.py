"""Answers to the programs' queries, worked out again from the world's truth without the programs.

Everything is found by going through all things; nothing is shared with `single` and `several` but the query.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from tessera.data.engine import Instruction
from tessera.world.dataset import Sample
from tessera.world.scene import Truth

GAP = 0.10


class Picture:
    """One frame of a sample: its things, and how they stand to each other."""

    def __init__(self, sample: Sample, frame: int) -> None:
        self.sample, self.frame = sample, frame
        self.things: tuple[Truth, ...] = sample.truth(frame)

    def named(self, name: str) -> list[Truth]:
        """Things of a name."""
        return [t for t in self.things if t.name == name]

    def the(self, name: str) -> Truth:
        """The only thing of a name. Raises `ValueError` if it is not the only one."""
        (found,) = self.named(name)
        return found

    def boxed(self, box: Any) -> Truth:
        """The thing with a box."""
        (found,) = [t for t in self.things if np.allclose(t.box, box)]
        return found

    def owner(self, point: str) -> int:
        """The index of the thing that a written point lies on, -1 for none; asks that the point's whole cell does."""
        x, y = (float(v) / (1 if "." in v else 100) for v in re.findall(r"[\d.]+", point))
        _, visible = self.sample.masks(self.frame)
        height, width = visible.shape[1:]
        rows = sorted({min(height - 1, int((y + d) * height)) for d in (0.0, 0.0099)})
        columns = sorted({min(width - 1, int((x + d) * width)) for d in (0.0, 0.0099)})
        owners = {next((i for i, mask in enumerate(visible) if mask[r, c]), -1) for r in rows for c in columns}
        if len(owners) != 1:
            raise ValueError(f"the point {point} lies on an edge")
        return owners.pop()


def value(thing: Truth, kind: str) -> str | None:
    """The value of a kind of attribute."""
    return thing.tint if kind == "colour" else thing.style


def relations(a: Truth, b: Truth) -> tuple[str, ...] | None:
    """How a stands to b; None where an axis is too near to call."""
    dx, dy = a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]
    if min(abs(dx), abs(dy)) < GAP:
        return None
    return ("above" if dy < 0 else "below", "left of" if dx < 0 else "right of")


def stands(a: Truth, name: str, b: Truth) -> bool | None:
    """Whether a stands in a relation to b; None if it is too near to call."""
    axis, sign = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}[name]
    distance = sign * (b.centre[axis] - a.centre[axis])
    return True if distance >= GAP else False if distance <= -GAP else None


def told(picture: Picture, reference: Any) -> Truth:
    """The only thing that a reference tells. Raises `ValueError` if none or several might be meant."""
    kind, wanted, relation, other = reference
    anchor = picture.the(other) if relation else None
    found = []
    for thing in picture.things:
        verdicts: list[bool | None] = []
        if kind:
            known = value(thing, kind)
            verdicts.append(None if known is None else known == wanted)
        if anchor is not None:
            verdicts.append(False if thing is anchor else stands(thing, relation, anchor))
        if False in verdicts:
            continue
        if None in verdicts:
            raise ValueError(f"{reference} may also mean the {thing.name}")
        found.append(thing)
    (one,) = found
    return one


def right_answers(pictures: Sequence[Picture], query: dict[str, Any]) -> tuple[str, ...]:
    """Everything that is a right answer to a query. Raises `ValueError` where the query has none that is certain."""
    op, first = query["op"], pictures[0]
    numbers = [f"picture {i + 1}" for i in range(len(pictures))]

    def the_one(fits: Sequence[bool]) -> tuple[str, ...]:
        (number,) = [n for n, fit in zip(numbers, fits, strict=True) if fit]
        return (number,)

    def best(names: Sequence[str], score: Any) -> tuple[str, ...]:
        ranked = sorted(names, key=score)
        if score(ranked[-1]) == score(ranked[-2]):
            raise ValueError("two are equal")
        return (ranked[-1],)

    def counted(label: str, kind: str = "", wanted: str = "") -> list[int]:
        if kind and any(value(t, kind) is None for p in pictures for t in p.named(label)):
            raise ValueError(f"the {kind} of a {label} is not known")
        return [sum(not kind or value(t, kind) == wanted for t in p.named(label)) for p in pictures]

    match op:
        case "count" | "count_all":
            return (str(sum(counted(query["label"]))),)
        case "count_attribute" | "count_attribute_all":
            return (str(sum(counted(query["label"], query["kind"], query["value"]))),)
        case "most":
            return best(query["labels"], lambda n: len(first.named(n)))
        case "least":
            return best(query["labels"], lambda n: -len(first.named(n)))
        case "outermost":
            place, sign = {"left": (0, -1), "right": (2, 1), "top": (1, -1), "bottom": (3, 1)}[query["side"]]
            return best(query["labels"], lambda n: sign * first.the(n).box[place])
        case "attributes":
            thing = first.boxed(query["box"])
            return tuple(v for k in ("colour", "style") if (v := value(thing, k)) is not None)
        case "attribute":
            return (str(value(first.boxed(query["box"]), query["kind"])),)
        case "attribute_of":
            return (str(value(told(first, query["ref"]), query["kind"])),)
        case "object_of":
            return (told(first, query["ref"]).name,)
        case "relation" | "relation_box" | "relation_of":
            get = {"relation": first.the, "relation_box": first.boxed, "relation_of": lambda r: told(first, r)}[op]
            found = relations(get(query["a"]), get(query["b"]))
            if found is None:
                raise ValueError("too near to call")
            return found
        case "head":
            verdicts = {n: stands(first.the(n), query["relation"], first.the(query["b"])) for n in query["labels"]}
            if None in verdicts.values():
                raise ValueError("too near to call")
            return tuple(n for n, fits in verdicts.items() if fits)
        case "closer":
            return best(query["labels"], lambda n: first.the(n).depth)
        case "farther":
            return best(query["labels"], lambda n: -first.the(n).depth)
        case "closer_to":
            return best(query["labels"], lambda n: -abs(first.the(n).depth - first.the(query["anchor"]).depth))
        case "farther_from":
            return best(query["labels"], lambda n: abs(first.the(n).depth - first.the(query["anchor"]).depth))
        case "closer_point":
            return best(query["points"], first.owner)  # things stand in order of depth, nothing is behind them all
        case "farther_point":
            return best(query["points"], lambda p: -first.owner(p))
        case "same" | "different":
            home = first.owner(query["anchor"])
            return tuple(p for p in query["points"] if (first.owner(p) == home) == (op == "same"))
        case "has" | "has_not":
            return the_one([(n > 0) == (op == "has") for n in counted(query["label"])])
        case "has_attribute" | "has_not_attribute":
            found_in = counted(query["label"], query["kind"], query["value"])
            return the_one([(n > 0) == (op == "has_attribute") for n in found_in])
        case "has_relation" | "has_not_relation":
            held = [stands(p.the(query["a"]), query["relation"], p.the(query["b"])) for p in pictures]
            if None in held:
                raise ValueError("too near to call")
            return the_one([h == (op == "has_relation") for h in held])
        case "has_most" | "has_least":
            sign = 1 if op == "has_most" else -1
            counts = dict(zip(numbers, counted(query["label"]), strict=True))
            return best(numbers, lambda n: sign * counts[n])
        case "common_object":
            sets = [{t.name for t in p.things} for p in pictures]
            return tuple(sorted(set.intersection(*sets)))
        case "common_attribute":
            shared: list[str] = []
            for kind in query["kinds"]:
                kinds = [{str(value(t, kind)) for t in p.named(query["label"])} for p in pictures]
                shared += sorted(set.intersection(*kinds))
            return tuple(shared)
        case "compare_relation":
            each = [" and ".join(relations(p.the(query["a"]), p.the(query["b"])) or ("?",)) for p in pictures]
            return ("; ".join(f"{n}: {t}" for n, t in zip(numbers, each, strict=True)),)
        case "compare_attribute":
            each = [" and ".join(str(value(p.the(query["label"]), k)) for k in query["kinds"]) for p in pictures]
            return ("; ".join(f"{n}: {t}" for n, t in zip(numbers, each, strict=True)),)
    raise ValueError(f"unknown op {op!r}")


def wrong_with(instruction: Instruction) -> str:
    """What is wrong with an instruction about world samples, "" if nothing is."""
    question = instruction.question
    sources = [p.source for p in instruction.pictures]
    pictures = [Picture(*source) for source in sources if source is not None]
    if len(pictures) != len(sources):
        return "a picture is not of the world"
    try:
        right = right_answers(pictures, dict(question.query))
    except ValueError as error:
        return f"no certain answer: {error}"
    if question.form == "choice":
        options = {c: re.sub(r"^[A-Z]\. ", "", c) for c in question.choices}
        fit = [c for c, text in options.items() if text in right]
        return "" if fit == [question.answer] else f"{fit} of {list(options)} are right, not {question.answer!r}"
    said = " and ".join(right)
    return "" if question.answer == said else f"the answer is {said!r}, not {question.answer!r}"
