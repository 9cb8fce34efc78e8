"""Small models made within a claim: packed lessons say what single questions say, and something is learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tessera.errors import UserError
from tessera.lab.instruments.small import Exercise, _packed, _rows, accuracy, built, exercise, taught

FRONT: dict[str, Any] = {
    "encoders": [{"kind": "conv_vit", "image_size": 32, "width": 24, "depth": 1, "heads": 2}],
    "tokens": {"kind": "pixel_shuffle", "factor": 2},
}
MLP = {**FRONT, "connector": {"kind": "mlp"}}
READS = {**FRONT, "connector": {"kind": "qformer", "queries": 2, "width": 16, "depth": 1, "heads": 2, "mlp_ratio": 1}}


@pytest.fixture(scope="module")
def lesson() -> Exercise:
    return exercise(FRONT, 4, split="train", types=("existence", "category"), most=3, start={})


def test_features_are_the_towers_and_rows_name_their_images(lesson: Exercise) -> None:
    assert lesson.features.shape == (4, 4, 96) and lesson.features.dtype == torch.float16
    assert {image for image, _, _ in lesson.rows} <= set(range(4))
    assert max(sum(image == i for image, _, _ in lesson.rows) for i in range(4)) <= 3


def test_packed_loss_is_that_of_single_questions(lesson: Exercise) -> None:
    model, processor = built(MLP, {})
    own = [[i for i, row in enumerate(lesson.rows) if row[0] == image] for image in range(4)]
    own = [rows for rows in own if rows]
    with torch.no_grad():
        packed = model(**_packed(processor, lesson, own)).loss
        single = model(**_rows(processor, lesson, [i for rows in own for i in rows])).loss
    torch.testing.assert_close(packed, single, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("parts", [MLP, READS], ids=["packed", "row by row"])
def test_a_lesson_of_one_row_is_learned(lesson: Exercise, parts: dict[str, Any]) -> None:
    one = Exercise(lesson.features, [lesson.rows[0]])
    model, processor = taught(parts, one, seed=0, steps=40, images=1)
    assert accuracy(model, processor, one) == accuracy(model, processor, one, wrong_question=True) == 1.0


def test_the_same_seed_gives_the_same_weights(lesson: Exercise) -> None:
    first, second = (taught(MLP, lesson, seed=3, steps=2, images=2)[0].state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_nothing_to_ask_is_refused() -> None:
    with pytest.raises(UserError, match="give no question of the types chart"):
        exercise(FRONT, 1, split="train", types=("chart",), start={})
