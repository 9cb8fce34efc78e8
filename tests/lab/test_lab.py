"""What a lab gives to claims: reference models, evaluations that are kept, differences, budgeted training, costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.lab.tiny_lab import SIDE, tiny

from tessera.errors import UserError
from tessera.evaluation import harness
from tessera.lab import lab as room
from tessera.lab.claim import Finding
from tessera.lab.lab import Lab, mean, spread

ASKED: dict[str, Any] = {"types": ("existence", "category"), "n": 8}


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    return tiny()


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(cache=tmp_path)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every evaluation that is really run."""
    calls: list[Any] = []
    real = harness.evaluate

    def evaluate(*args: Any, **options: Any) -> Any:
        calls.append(options)
        return real(*args, **options)

    monkeypatch.setattr(harness, "evaluate", evaluate)
    return calls


def test_the_same_evaluation_is_run_once(lab: Lab, model: tuple[Any, Any], counted: list[Any]) -> None:
    first = lab.evaluate(*model, **ASKED)
    assert first.n == 8 and first.config["world"]["width"] == SIDE and first.config["world"]["split"] == "test"
    assert lab.saved == 0
    again = Lab(cache=lab.cache)
    assert again.evaluate(*model, **ASKED) == first and len(counted) == 1
    assert again.saved == first.seconds


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 1},
        {"n": 10},
        {"types": ("existence",)},
        {"blind": True},
        {"world": {"things": (1, 2)}},
        {"plug": {"random": {"keep": (0.5,)}}},
        {"plug": {"random": {"keep": (0.5,), "seed": 1}}},
    ],
)
def test_whatever_else_is_asked_is_run_anew(lab: Lab, model: tuple[Any, Any], counted: list[Any], change: dict[str, Any]) -> None:
    lab.evaluate(*model, **ASKED)
    lab.evaluate(*model, **{**ASKED, **change})
    assert len(counted) == 2


def test_other_weights_and_another_configuration_are_other_models(lab: Lab, model: tuple[Any, Any], counted: list[Any]) -> None:
    lab.evaluate(*model, **ASKED)
    lab.evaluate(*tiny(seed=1), **ASKED)
    same, processor = tiny()
    same.config.text_config.rms_norm_eps *= 2
    lab.evaluate(same, processor, **ASKED)
    assert len(counted) == 3


def test_a_part_that_changes_is_measured_anew(
    lab: Lab, model: tuple[Any, Any], counted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    plug = {"uniform": {"keep": (0.5,)}}
    lab.evaluate(*model, **ASKED, plug=plug)
    monkeypatch.setattr(room.evidence, "part_hash", lambda part: "f" * 16)
    lab.evaluate(*model, **ASKED, plug=plug)
    assert len(counted) == 2


def test_another_who_answers_is_kept_only_by_a_key(lab: Lab, model: tuple[Any, Any], counted: list[Any]) -> None:
    class Yes:
        def answer_batch(self, rows: Any, max_new_tokens: int) -> Any:
            return [[type("A", (), {"text": "yes"})() for _ in asked] for _, asked in rows]

    for _ in range(2):
        found = lab.evaluate(*model, types=("existence",), n=20, answers=Yes())
    assert len(counted) == 2 and 0 < found.accuracy < 1
    for _ in range(2):
        lab.evaluate(*model, types=("existence",), n=20, answers=Yes(), answers_key=["yes"])
    assert len(counted) == 3


def test_differences_are_of_the_same_questions(lab: Lab, model: tuple[Any, Any]) -> None:
    first, second = lab.evaluate(*model, **ASKED), lab.evaluate(*model, **ASKED, plug={"random": {}})
    gap = lab.difference(first, second)
    assert gap.low <= gap.value <= gap.high and gap.value == pytest.approx(first.accuracy - second.accuracy)
    with pytest.raises(UserError, match="different questions"):
        lab.difference(first, lab.evaluate(*model, **{**ASKED, "seed": 3}))


def test_a_reference_is_loaded_once_and_copied_on_demand(lab: Lab) -> None:
    first, _ = lab.reference("object-expert")
    assert lab.reference("object-expert")[0] is first and lab.used == {"object-expert"}
    own, _ = lab.reference("object-expert", copy=True)
    with torch.no_grad():
        next(own.parameters()).zero_()
    assert bool(next(lab.reference("object-expert")[0].parameters()).any())
    with pytest.raises(UserError, match="Did you mean 'object-expert'"):
        lab.reference("object-experts")


def test_an_exact_claim_about_hosts_says_who_refused(lab: Lab) -> None:
    found = lab.hosted("uniform", ("llava",))
    assert found.verdict == "holds" and found.checks == {"identity, cache and undoing on llava": True}
    refused = lab.hosted("globalcom2", ("qwen2_5_vl",))
    assert refused.verdict == "not applicable" and "class token" in refused.note
    with pytest.raises(UserError, match="it cannot be plugged into a host"):
        lab.hosted("linear")


def recipe(lab: Lab) -> Any:
    from tessera.recipes.recipe import recipe

    made = recipe("quickstart")
    settings = tiny()[0].config
    made.model = {"parts": settings.parts, "text_config": settings.text_config.to_dict()}
    made.start, made.lessons = {}, {}
    made.worlds[0].width = made.worlds[0].height = SIDE
    made.worlds = made.worlds[:1]
    made.training.stages = made.training.stages[:1]
    made.training.stages[0].steps = 2
    made.training.batch_size = 4
    return made


def test_a_training_is_run_once_for_a_recipe_and_a_seed(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from tessera.training import run as training

    real, calls = training.run, []
    monkeypatch.setattr(training, "run", lambda *a, **k: calls.append(a) or real(*a, **k))
    first, _ = lab.train(recipe(lab))
    lab.used.add("reading-expert")  # what other claims have used is no part of it
    second, _ = lab.train(recipe(lab))
    assert len(calls) == 1 and lab.saved > 0
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other, _ = lab.train(recipe(lab), seed=5)
    assert len(calls) == 2
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_a_training_that_is_interrupted_interrupts_the_claim(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from tessera.training import run as training

    stopped = type("Result", (), {"stopped": True})()
    monkeypatch.setattr(training, "run", lambda *a, **k: (stopped, None, None))
    with pytest.raises(KeyboardInterrupt):
        lab.train(recipe(lab))


def test_costs(lab: Lab) -> None:
    square = torch.randn(8, 8)
    assert lab.flops(lambda: square @ square) == 2 * 8**3
    taken = lab.timing(lambda: [square @ square for _ in range(400)], lambda: None, rounds=3)
    assert taken.low <= taken.median <= taken.high and taken.median > 1
    assert "threads" in lab.shape()


def test_means_and_spreads() -> None:
    assert mean([1.0, 2.0, 3.0]) == 2 and spread([1.0, 2.0, 3.0]) == 1 and spread([4.0]) == 0


def test_kinds_in_plain_data_name_the_parts(lab: Lab) -> None:
    plain = {"parts": {"tokens": {"kind": "pixel_shuffle"}, "x": [{"kind": "mlp"}, "fopru", 3]}, "kinds": {"clip": 1.0}}
    found = lab._parts_in(plain)
    assert found.keys() == {"tokens/pixel_shuffle", "connectors/mlp"}, "the world's clips are not the part of that name"
    assert all(len(value) == 16 for value in found.values())


def test_what_a_claim_measured_is_rounded_where_it_is_written(lab: Lab) -> None:
    from tessera.lab.claim import Claim
    from tessera.lab.verify import run

    claim = Claim("c", "c", "effect", "", lambda _: Finding(checks={"x": True}, measured={"a": 1 / 3, "b": 1e-12}), "")
    assert run(claim, lab).measured == {"a": 0.333333, "b": 1e-12}
