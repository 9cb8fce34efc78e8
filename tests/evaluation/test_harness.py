"""The harness against answerers whose accuracy is known, and against real tiny models."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.errors import UserError
from tessera.evaluation.answering import Loop, generator
from tessera.evaluation.harness import evaluate
from tessera.evaluation.items import EvaluationConfig, Item
from tessera.evaluation.result import load_result, words
from tessera.world.questions import TYPES
from tessera.world.scene import Question

Answerers = Callable[[Callable[[Question], str]], Any]


def nothing(question: Question) -> str:
    return ""


def truth(question: Question) -> str:
    return question.answer


def test_an_answerer_that_knows_everything_is_always_right(model: Any, config: EvaluationConfig, knowing: Answerers) -> None:
    result = evaluate(model, None, config, answers=knowing(truth), name="all-knowing")
    assert result.accuracy == 1.0
    assert list(result.types) == list(TYPES)
    assert {t.n for t in result.types.values()} == {2}
    assert result.n == 36 and result.samples < 18
    assert result.types["box"].iou == 1.0
    assert all(t.low < 1 and t.high == 1 for t in result.types.values())
    assert all(example.right and example.said == example.answer for example in result.examples)


def test_an_answerer_that_says_nothing_is_never_right(model: Any, config: EvaluationConfig, knowing: Answerers) -> None:
    result = evaluate(model, None, config, answers=knowing(nothing))
    assert result.accuracy == 0.0
    assert {t.iou for t in result.types.values()} == {None, 0.0}
    assert not any(example.right for example in result.examples)


def test_one_type_can_be_known(model: Any, config: EvaluationConfig, knowing: Answerers) -> None:
    result = evaluate(model, None, config, answers=knowing(lambda q: q.answer if q.type == "reading" else "?"))
    assert {name for name, found in result.types.items() if found.accuracy} == {"reading"}
    assert result.accuracy == pytest.approx(1 / len(TYPES))
    assert result.numbers()["accuracy/reading"] == 1.0


def test_the_parts_of_a_type_add_up(model: Any, config: EvaluationConfig, knowing: Answerers) -> None:
    result = evaluate(model, None, config, answers=knowing(lambda q: q.answer if len(q.text) % 2 else "?"))
    for found in result.types.values():
        outcomes = [o for word in words(found.outcomes) for o in word]
        assert len(outcomes) == found.n
        assert sum(outcomes) == round(found.accuracy * found.n)
        for shares in (found.forms, found.ops):
            assert sum(s.n for s in shares.values()) == found.n
            assert sum(s.n * s.accuracy for s in shares.values()) == pytest.approx(sum(outcomes))


def test_blind_questions_come_without_images(model: Any, config: EvaluationConfig, knowing: Answerers) -> None:
    seeing, blind = knowing(truth), knowing(truth)
    assert not evaluate(model, None, config, answers=seeing).without_images
    assert evaluate(model, None, config, answers=blind, blind=True).without_images
    assert all(len(images) for images, _ in seeing.rows)
    assert not any(len(images) for images, _ in blind.rows)
    assert [asked for _, asked in seeing.rows] == [asked for _, asked in blind.rows]


def test_every_image_is_given_once_for_all_its_questions(
    model: Any, config: EvaluationConfig, knowing: Answerers, items: list[Item]
) -> None:
    asked = knowing(truth)
    evaluate(model, None, config, answers=asked)
    assert sorted(len(images) for images, _ in asked.rows) == sorted(len(i.sample.frames) for i in items)
    assert {image.size for images, _ in asked.rows for image in images} == {(64, 64)}


def test_what_seeing_adds_is_measured_on_the_same_questions(model: Any, config: EvaluationConfig, knowing: Answerers) -> None:
    seeing = evaluate(model, None, config, answers=knowing(truth))
    blind = evaluate(model, None, config, answers=knowing(lambda q: "yes" if q.form == "yesno" else "?"), blind=True)
    both = seeing.with_blind(blind)
    assert seeing.blind is None
    assert both.blind == blind.accuracy
    for name, found in both.types.items():
        assert found.blind == blind.types[name].accuracy
        assert found.gain is not None and found.gain.value == pytest.approx(1 - found.blind)


def test_results_about_other_questions_are_not_compared(model: Any, config: EvaluationConfig, knowing: Answerers) -> None:
    result = evaluate(model, None, config, answers=knowing(truth))
    with pytest.raises(UserError, match="not asked the same questions"):
        result.with_blind(replace(result, items="0" * 16))


def test_progress_reaches_the_end(model: Any, config: EvaluationConfig, knowing: Answerers) -> None:
    told: list[tuple[int, int]] = []
    evaluate(model, None, config, answers=knowing(truth), progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1] == (36, 36)


def test_a_result_survives_its_file(model: Any, config: EvaluationConfig, knowing: Answerers, tmp_path: Path) -> None:
    result = evaluate(model, None, config, answers=knowing(truth), name="tiny")
    result = result.with_blind(evaluate(model, None, config, answers=knowing(nothing), blind=True))
    result.save(tmp_path / "result.json")
    assert load_result(tmp_path / "result.json") == result
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(asdict(result)))


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model": 3}', '{"colour": "red"}'])
def test_a_file_that_is_no_result_is_refused(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError):
        load_result(path)


# Real models


def test_a_model_is_asked_in_evaluation_mode_and_left_as_it_was(model: Any, processor: Any, config: EvaluationConfig) -> None:
    modes: list[bool] = []
    model.train()
    model.model.encoders.eval()
    model.model.connector.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    result = evaluate(model, processor, config)
    assert modes and not any(modes)
    assert model.training and not model.model.encoders.training
    assert result.weights and result.parameters == sum(p.numel() for p in model.parameters())


def test_our_generation_and_the_plain_loop_say_the_same(model: Any, processor: Any, items: list[Item]) -> None:
    rows = [(item.sample.images(), [q.text for q in item.questions]) for item in items[:6]]
    rows += [([], [q.text for q in items[0].questions])]
    with torch.no_grad():
        ours = generator(model, processor).answer_batch(rows, max_new_tokens=4)
        plain = Loop(model, processor, size=3).answer_batch(rows, max_new_tokens=4)
    assert [[a.text for a in row] for row in ours] == [[a.text for a in row] for row in plain]


def test_a_model_that_needs_no_images_can_be_measured_blind(model: Any, processor: Any, config: EvaluationConfig) -> None:
    blind = evaluate(model, processor, config, blind=True)
    assert blind.n == 36


def test_weights_that_differ_have_another_hash(model: Any, processor: Any, config: EvaluationConfig, knowing: Answerers) -> None:
    before = evaluate(model, None, config, answers=knowing(truth)).weights
    with torch.no_grad():
        model.get_input_embeddings().weight[5, 3] += 1
    assert evaluate(model, None, config, answers=knowing(truth)).weights != before


def test_a_processor_without_a_chat_template_is_an_error() -> None:
    with pytest.raises(UserError, match="no chat template"):
        Loop(None, object())
