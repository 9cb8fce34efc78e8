"""Questions about many samples of the world, against an oracle of its own, and how they are balanced."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from typing import Any

import pytest

from tessera.world.backgrounds import COLOURS
from tessera.world.concepts import concepts
from tessera.world.dataset import Sample, World
from tessera.world.questions import TYPES, template_words
from tessera.world.questions.boxes import box_cells, box_text, iou
from tessera.world.questions.phrasing import PHRASES, POSITIONS
from tessera.world.scene import Question, Truth

OPS = {
    "exists",
    "count",
    "count_category",
    "total",
    "more",
    "beside",
    "is_beside",
    "where",
    "nearest",
    "farthest",
    "larger",
    "smaller",
    "largest",
    "smallest",
    "tint",
    "style",
    "background",
    "category_region",
    "category_largest",
    "odd",
    "box",
    "at_box",
    "at_region",
    "count_beside",
    "category_beside",
    "tint_nearest",
}


def oracle(sample: Sample, truth: tuple[Truth, ...], query: dict[str, Any]) -> str:
    """The answer by plain search of the truth, without the margins."""
    of = {t.concept: t for t in truth}
    op = query["op"]
    sides = {"left": (0, -1), "right": (0, 1), "above": (1, -1), "below": (1, 1)}

    def beside(concept: int, direction: str) -> list[Truth]:
        axis, sign = sides[direction]
        centre = of[concept].centre[axis]
        return [t for t in truth if t.concept != concept and (t.centre[axis] - centre) * sign > 0]

    def single(found: list[Truth]) -> Truth:
        assert len(found) == 1
        return found[0]

    def region(name: str) -> list[Truth]:
        return [t for t in truth if ("top" in name) == (t.centre[1] < 0.5) and ("left" in name) == (t.centre[0] < 0.5)]

    def far(concept: int) -> list[Truth]:
        x, y = of[concept].centre
        rest = [t for t in truth if t.concept != concept]
        return sorted(rest, key=lambda t: (t.centre[0] - x) ** 2 + (t.centre[1] - y) ** 2)

    def named(concept: int) -> Truth:
        return single([t for t in truth if t.concept == concept])

    by_area = sorted(truth, key=lambda t: t.area)
    match op:
        case "exists":
            return "yes" if query["concept"] in of else "no"
        case "count":
            return str(sum(t.concept == query["concept"] for t in truth))
        case "count_category":
            return str(sum(t.category == query["category"] for t in truth))
        case "total":
            return str(len(truth))
        case "more":
            return concepts()[max((query["a"], query["b"]), key=lambda c: sum(t.concept == c for t in truth))].name
        case "beside":
            return named(single(beside(query["concept"], query["direction"])).concept).name
        case "is_beside":
            return "yes" if named(query["a"]) in beside(query["b"], query["direction"]) else "no"
        case "where":
            x, y = named(query["concept"]).centre
            return POSITIONS[int(y * 3)][int(x * 3)]
        case "nearest":
            return named(far(query["concept"])[0].concept).name
        case "farthest":
            return named(far(query["concept"])[-1].concept).name
        case "larger" | "smaller":
            pick = max if op == "larger" else min
            return pick(named(query["a"]), named(query["b"]), key=lambda t: t.area).name
        case "largest":
            return by_area[-1].name
        case "smallest":
            return by_area[0].name
        case "tint":
            return str(named(query["concept"]).tint)
        case "style":
            return named(query["concept"]).style
        case "background":
            return sample.frames[0].background.colour
        case "category_region":
            return single(region(query["region"])).category
        case "category_largest":
            return by_area[-1].category
        case "odd":
            return single([t for t in truth if all(t.category != o.category for o in truth if o is not t)]).name
        case "box":
            return box_text(named(query["concept"]).box)
        case "at_box":
            return max(truth, key=lambda t: iou(box_cells(t.box), query["box"])).name
        case "at_region":
            return single(region(query["region"])).name
        case "count_beside":
            return str(len(beside(query["concept"], query["direction"])))
        case "category_beside":
            return single(beside(query["concept"], query["direction"])).category
        case "tint_nearest":
            return str(far(query["concept"])[0].tint)
    raise AssertionError(op)


Drawn = list[tuple[Sample, list[Question]]]
SAMPLES = 1000


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """Samples of the kinds "scene" and "text", a few of them not square."""
    square, wide = (
        World(kinds={"scene": 0.85, "text": 0.15}),
        World(kinds={"scene": 1.0}, width=160, height=96),
    )
    samples = [(wide if i % 8 == 0 else square)[i] for i in range(SAMPLES)]
    return [(s, s.questions()) for s in samples]


def test_the_oracle_agrees(drawn: Drawn) -> None:
    ops = set()
    for sample, questions in drawn:
        truth = sample.truth(0)
        for q in questions:
            ops.add(q.asked("op"))
            if q.type == "reading":
                assert q.answer == sample.frames[0].signs[int(str(q.asked("sign")))].text
                continue
            assert q.answer == oracle(sample, truth, dict(q.query)), q
    assert ops == {*OPS, "read"}


def test_the_same_stream_gives_the_same_questions(drawn: Drawn) -> None:
    for sample, questions in drawn[:100]:
        assert World(sample.config)[sample.index].questions() == questions


def test_every_question_is_well_formed(drawn: Drawn) -> None:
    for _, questions in drawn:
        for type, group in itertools.groupby(questions, key=lambda q: q.type):
            several = list(group)
            assert len(several) <= 3
            assert len({(q.query, q.form) for q in several}) == len(several)
            assert all(q.form in TYPES[type].forms for q in several)
        for q in questions:
            assert q.text[0].isupper()
            assert q.text[-1] in "?."
            assert q.rationale[0].isupper()
            assert q.rationale.endswith(".")
            assert "{" not in q.text + q.rationale
            assert q.answer not in q.distractors
            assert len(set(q.distractors)) == len(q.distractors)
            if q.form == "choice":
                assert 3 <= len(q.choices) <= 4
                assert len(set(q.choices)) == len(q.choices)
                assert q.answer in q.choices
                assert q.text.endswith(f" Choose: {', '.join(q.choices)}.")
            else:
                assert not q.choices
            assert len(q.distractors) >= (1 if q.form == "yesno" or q.asked("op") == "style" else 3)
            for frame, (x0, y0, x1, y1) in q.evidence:
                assert frame == 0
                assert 0 <= x0 < x1 <= 1
                assert 0 <= y0 < y1 <= 1


def test_balance(drawn: Drawn) -> None:
    questions = [q for _, group in drawn for q in group]
    for type in ("existence", "relation"):
        said = Counter(q.answer for q in questions if q.type == type and q.form == "yesno")
        assert abs(said["yes"] / said.total() - 0.5) < 0.03
    for length in (3, 4):
        places = Counter(q.choices.index(q.answer) for q in questions if len(q.choices) == length)
        assert all(abs(places[i] / places.total() - 1 / length) < 0.03 for i in range(length))
    for op in ("larger", "smaller", "more"):
        pairs = [q for q in questions if q.asked("op") == op]
        first = sum(concepts()[int(str(q.asked("a")))].name == q.answer for q in pairs)
        assert abs(first / len(pairs) - 0.5) < 0.08
    places = Counter(q.answer for q in questions if q.type == "position")
    assert max(places.values()) < 3 * min(places.values())


def test_negatives_are_hard(drawn: Drawn) -> None:
    akin = total = 0
    for sample, questions in drawn:
        kinds = {t.category for t in sample.truth(0)}
        for q in questions:
            if q.type == "existence" and q.answer == "no":
                total += 1
                akin += concepts()[int(str(q.asked("concept")))].category in kinds
    assert akin / total > 0.75


def test_a_choice_of_names_does_not_mix_present_and_absent(drawn: Drawn) -> None:
    ids = {c.name: i for i, c in enumerate(concepts())}
    for sample, questions in drawn:
        present = {t.name for t in sample.truth(0)}
        for q in questions:
            if q.form == "choice" and q.type in ("relation", "distance", "size", "at"):
                absent = [c for c in q.choices if c not in present]
                kinds = {concepts()[ids[c]].category for c in q.choices}
                assert not absent or (len(absent) == len(q.choices) - 1 and len(kinds) == 1)


def test_every_word_is_known(drawn: Drawn) -> None:
    known = template_words() | {*COLOURS}
    known |= {w for c in concepts() for w in re.findall(r"[A-Za-z]+", f"{c.name} {c.category}")}
    for _, questions in drawn:
        for q in questions:
            for word in re.findall(r"[A-Za-z]+", f"{q.text} {q.answer} {q.rationale}"):
                assert word in known or (word.isupper() and q.type == "reading"), (word, q)
    for templates in PHRASES.values():
        assert 1 <= len(templates) <= 3
        for template in templates:
            assert set(re.findall(r"[A-Za-z]+", re.sub(r"\{\w+\}", "", template))) <= template_words()
