"""What generation refuses, and where the context ends."""

from __future__ import annotations

import pytest
from tests.hosts.tiny import build, images

from tessera.errors import UserError
from tessera.generation.generate import Generator


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_is_refused(question: str) -> None:
    generator = Generator(*build())
    prefix = generator.prefix(images(1))
    for ask in (lambda: generator.answer(prefix, ["dog", question]), lambda: generator.stream(prefix, question)):
        with pytest.raises(UserError, match="question is empty"):
            ask()


@pytest.mark.parametrize("over", [1, 9])
def test_a_question_longer_than_the_context_says_by_how_much(over: int) -> None:
    model, processor = build(max_length=60)
    generator = Generator(model, processor)
    prefix = generator.prefix(images(2))
    fits = " ".join(["dog"] * (60 - prefix.length - 3))
    with pytest.raises(UserError, match=f"{over} more than this model's context of 60 .* Shorten it by {over} tokens"):
        generator.answer(prefix, [fits + " dog" * over])
    [answer] = generator.answer(prefix, [fits], 5)
    assert len(answer.tokens) <= 1, "one token is all that the context leaves room for"
    half = " ".join(["dog"] * (60 - prefix.length - 6))
    model.generation_config.eos_token_id = []
    assert [len(a.tokens) for a in Generator(model, processor).answer(prefix, [half, "dog"], 9)] == [4, 9]


def test_too_many_images_are_refused() -> None:
    generator = Generator(*build(max_images=2))
    with pytest.raises(UserError, match="3 images were given; this model takes at most 2"):
        generator.prefix(images(3))
    generator = Generator(*build(max_length=16))
    with pytest.raises(UserError, match="3 images take 16 tokens, 1 more than this model's context of 16 leaves room for"):
        generator.prefix(images(3))


def test_a_placeholder_in_the_question_is_refused() -> None:
    generator = Generator(*build())
    with pytest.raises(UserError, match="<image>, which stands for an image"):
        generator.answer(generator.prefix(images(1)), ["What is <image>?"])


def test_no_tokens_at_all_are_refused() -> None:
    generator = Generator(*build())
    with pytest.raises(UserError, match="at least 1, not 0"):
        generator.answer(generator.prefix(images(1)), ["dog"], 0)


def test_a_setting_that_is_not_done_here_is_refused() -> None:
    model, processor = build()
    model.generation_config.repetition_penalty = 1.3
    with pytest.raises(UserError, match=r"sets repetition_penalty to 1\.3.*set it to 1\.0"):
        Generator(model, processor)
