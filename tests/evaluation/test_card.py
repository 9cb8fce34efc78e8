"""Model cards: every number in them was measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tessera.errors import UserError
from tessera.evaluation.card import model_card, write_card
from tessera.evaluation.experts import ExpertResult, Measure
from tessera.evaluation.harness import evaluate
from tessera.evaluation.items import EvaluationConfig
from tessera.evaluation.result import Result

RECIPE = {
    "name": "nano",
    "about": "Reference model | of the world.",
    "task": "questions",
    "training": {"batch_size": 24, "stages": [{"name": "instruct", "steps": 6000}, {"name": "together", "steps": 2500}]},
}


@pytest.fixture
def result(model: Any, config: EvaluationConfig, knowing: Callable[..., Any]) -> Result:
    return evaluate(model, None, config, answers=knowing(lambda q: q.answer if len(q.text) % 2 else "?"), name="nano")


@pytest.fixture
def blind(model: Any, config: EvaluationConfig, knowing: Callable[..., Any]) -> Result:
    return evaluate(model, None, config, answers=knowing(lambda q: "yes"), blind=True)


def table(card: str) -> dict[str, list[str]]:
    rows = [[c.strip() for c in line.strip("|").split(" | ")] for line in card.splitlines() if line.startswith("| ")]
    assert len({len(row) for row in rows}) == 1
    return {row[0].split(" (")[0]: row[1:] for row in rows}


def test_the_table_holds_the_measured_numbers(result: Result, blind: Result) -> None:
    both = result.with_blind(blind)
    rows = table(model_card(result, blind, RECIPE))
    for name, found in both.types.items():
        assert rows[name][0] == str(found.n)
        assert rows[name][1] == f"{100 * found.accuracy:.1f} %"
        assert rows[name][3] == f"{100 * (found.blind or 0):.1f} %"
    assert rows["**mean**"][1] == f"**{100 * result.accuracy:.1f} %**"


def test_without_a_blind_result_there_is_no_such_column(result: Result) -> None:
    assert "without images" not in model_card(result)
    assert len(table(model_card(result))["box"]) == 5


def test_the_recipe_and_the_origin_are_told(result: Result) -> None:
    card = model_card(result, recipe=RECIPE)
    assert "6,000 steps of stage *instruct*, then 2,500 steps of stage *together*, 24 samples a step" in card
    assert f"weights: `{result.weights}`" in card
    assert "pipeline_tag: image-text-to-text" in card
    assert card.startswith("---\n")


def test_an_expert_has_a_card_too() -> None:
    measure = Measure(about="the class of a patch", n=1234, accuracy=0.9, low=0.88, high=0.92, chance=0.01)
    found = ExpertResult(model="object-expert", weights="0123", parameters=1_000_000, measures={"things": measure})
    card = model_card(found, recipe={"name": "object_expert", "task": "objects"})
    assert "| the class of a patch | 1,234 | 90.0 % | 88.0 % – 92.0 % | 1.0 % |" in card
    assert "pipeline_tag: image-feature-extraction" in card


def test_numbers_of_other_questions_are_not_mixed(result: Result, blind: Result) -> None:
    with pytest.raises(UserError, match="same questions"):
        model_card(result, replace(blind, items="other"))


def test_the_card_is_the_readme_of_the_folder(result: Result, tmp_path: Path) -> None:
    path = write_card(tmp_path, result, recipe=RECIPE, name="nano")
    assert path == tmp_path / "README.md"
    assert path.read_text(encoding="utf-8") == model_card(result, recipe=RECIPE, name="nano")
