"""Rows of questions for trainings, and linear maps of frozen features."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.lab.tiny_lab import tiny

from tessera.errors import TesseraError
from tessera.lab.hallucinating import batch_of, mostly_yes
from tessera.lab.probe import ridge
from tessera.lab.rows import features_of, packed, pixels_of, right_answers


@pytest.fixture(scope="module")
def model() -> tuple[Any, Any]:
    return tiny()


def test_questions_that_do_not_fit_are_a_sentence(model: tuple[Any, Any]) -> None:
    _, processor = model
    item = (processor.question_ids("Is there a dog?"), processor.answer_ids("yes"), None)
    assert packed(processor, [[item, item], [item]])["segment_ids"].amax(1).tolist() == [2, 1]
    with pytest.raises(TesseraError, match="questions do not fit their rows of 512 tokens behind 1 pictures"):
        packed(processor, [[item], [item] * 200])


def test_an_answer_is_right_where_all_of_its_tokens_are_the_likeliest() -> None:
    labels = torch.tensor([[-100, -100, 4, 5, -100, 6], [-100, 3, -100, 2, -100, -100]])
    segments = torch.tensor([[0, 1, 1, 1, 2, 2], [0, 1, 2, 2, -1, -1]])
    said = torch.tensor([[0, 4, 7, 0, 6, 0], [3, 0, 2, 0, 0, 0]])  # what is said at a place stands in front of it
    found = right_answers(torch.nn.functional.one_hot(said, 8).float(), labels, segments)
    assert found == [[False, True], [True, True]]


def test_features_do_not_depend_on_how_many_images_are_read_at_once(model: tuple[Any, Any]) -> None:
    net, processor = model
    pixels = pixels_of(processor, [images[0] for images, _, _ in mostly_yes(0, 5)])
    assert pixels.shape[0] == 5
    assert torch.allclose(features_of(net, pixels, 2), features_of(net, pixels, 5), atol=1e-6)


def test_batches_of_a_recipe_are_its_rows_written_out(model: tuple[Any, Any]) -> None:
    """Padded to the longest row at the right; every label weighs the same, so there are no weights."""
    _, processor = model
    rows = [*mostly_yes(3, 3), (mostly_yes(4, 1)[0][0], "What kinds of things are there?", "a dog, a cat")]
    found = batch_of(processor, rows)
    assert sorted(found) == ["attention_mask", "input_ids", "labels", "pixel_values"]
    asked = [[*processor.prefix_ids(1), *processor.question_ids(question)] for _, question, _ in rows]
    said = [list(processor.answer_ids(answer)) for _, _, answer in rows]
    longest = max(len(a) + len(s) for a, s in zip(asked, said, strict=True))
    for row, (question, answer) in enumerate(zip(asked, said, strict=True)):
        rest = longest - len(question) - len(answer)
        assert found["input_ids"][row].tolist() == [*question, *answer, *[0] * rest]
        assert found["labels"][row].tolist() == [*[-100] * len(question), *answer, *[-100] * rest]
        assert found["attention_mask"][row].tolist() == [1] * (longest - rest) + [0] * rest
    assert found["pixel_values"].shape[0] == len(rows)
    assert "pixel_values" not in batch_of(processor, [([], "Is there a dog?", "yes")])


def test_ridge_solves_its_normal_equations() -> None:
    torch.manual_seed(0)
    train, test, targets = torch.randn(40, 6), torch.randn(9, 6), torch.rand(40, 3)
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    x, at = (torch.cat([(v - mean) / deviation, torch.ones(len(v), 1)], 1).double() for v in (train, test))
    for weight in (1.0, 30.0):
        wanted = at @ torch.linalg.solve(x.T @ x + weight * torch.eye(7).double(), x.T @ targets.double())
        assert torch.allclose(ridge(train, targets, test, weight), wanted, atol=1e-10)
