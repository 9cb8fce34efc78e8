"""What is benchmarked."""

from __future__ import annotations

from tessera.bench.subject import load, scenes


def test_scenes_have_different_questions() -> None:
    rows = scenes(3, 8, 64)
    assert [len(set(questions)) for _, questions in rows] == [8, 8, 8]
    assert [[image.size for image in images] for images, _ in rows] == [[(64, 64)]] * 3


def test_the_subject_of_default_is_the_nano_shape() -> None:
    model, processor, subject = load("")
    assert subject.language_model["num_hidden_layers"] == 8
    assert subject.language_model["hidden_size"] == 224
    assert subject.dtype == "float32"
    assert subject.threads >= 1
    assert not model.training
    assert processor.tokens_per_image == subject.tokens_per_image == 196
