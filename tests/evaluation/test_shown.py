"""The two answers that stand for an evaluation follow the rule, whatever else is there."""

from __future__ import annotations

from typing import Any

import pytest

from tessera.evaluation.report import report_html
from tessera.evaluation.result import Example, Result, TypeResult
from tessera.evaluation.shown import RULE, learned, shown


def kind(accuracy: float, chance: float = 0.0, majority: float = 0.0, blind: float | None = None) -> TypeResult:
    return TypeResult(n=10, accuracy=accuracy, low=0.0, high=1.0, chance=chance, majority=majority, blind=blind)


def example(type: str, right: bool, index: int = 3) -> Example:
    return Example(
        index=index, kind="scene", frames=1, type=type, form="open", question=f"{type} {index}?", answer="cup",
        said="cup" if right else "dog", right=right,
    )  # fmt: skip


def result(types: dict[str, TypeResult], examples: list[Example], **more: Any) -> Result:
    return Result(
        model="m", weights="w", parameters=1, without_images=False, n=10, samples=5, accuracy=0.5, low=0.4, high=0.6, chance=0.1,
        majority=0.1, types=types, examples=examples, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "gained"),
    [(kind(0.9), 0.9), (kind(0.9, chance=0.5), 0.4), (kind(0.9, 0.5, 0.7), 0.2), (kind(0.6, 0.5, 0.1, blind=0.65), -0.05)],
)
def test_learned_is_what_no_guess_explains(found: TypeResult, gained: float) -> None:
    assert learned(found) == pytest.approx(gained)


def test_right_is_of_the_best_type_and_wrong_of_the_worst() -> None:
    # "existence" has the highest accuracy, but half of it is chance.
    types = {"existence": kind(0.9, chance=0.5), "position": kind(0.8), "odd": kind(0.1)}
    examples = [example(name, right, index) for name in types for right in (True, False) for index in (7, 4)]
    assert [(e.type, e.right, e.index) for e in shown(result(types, examples))] == [("position", True, 7), ("odd", False, 7)]


def test_types_without_such_an_answer_are_passed_over() -> None:
    types = {"position": kind(0.8), "box": kind(0.4), "odd": kind(0.1)}
    only = [example("position", False), example("box", True), example("odd", True)]
    assert [(e.type, e.right) for e in shown(result(types, only))] == [("box", True), ("position", False)]


@pytest.mark.parametrize("right", [True, False])
def test_a_model_that_is_always_right_or_always_wrong_has_one(right: bool) -> None:
    types = {"position": kind(0.8), "odd": kind(0.1)}
    assert [e.right for e in shown(result(types, [example(name, right) for name in types]))] == [right]
    assert shown(result(types, [])) == []


def test_equal_types_are_taken_in_order() -> None:
    types = {"box": kind(0.5), "odd": kind(0.5)}
    examples = [example(name, right) for name in ("odd", "box") for right in (True, False)]
    assert [(e.type, e.right) for e in shown(result(types, examples))] == [("box", True), ("odd", False)]


def test_the_report_shows_both_with_their_pictures_first() -> None:
    types = {"position": kind(0.8), "odd": kind(0.1)}
    examples = [example(name, right, index) for name in types for right in (True, False) for index in (5, 2)]
    page = report_html(result(types, examples, config={"world": {"split": "test", "width": 64, "height": 64}}))
    section = page[page.index("Learned and not learned") : page.index("What it can do")]
    assert RULE in section and section.count("<img ") == 2
    assert section.index("position 5?") < section.index("odd 5?") and "position 2?" not in section
