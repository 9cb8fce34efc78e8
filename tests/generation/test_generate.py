"""Our generation against `model.generate`, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.hosts.tiny import QUESTIONS, build, expected, images

from tessera.generation import packed
from tessera.generation.generate import SIDE_BY_SIDE, GeneratedAnswer, Generator, Sampling

OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "grouped": {"num_key_value_heads": 2},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "tied": {"tie_word_embeddings": True},
    "long rope": {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
    "mistral": {"model_type": "mistral", "sliding_window": None, "head_dim": 8},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 16, "num_key_value_heads": 2},
}
OTHERS: dict[str, dict[str, Any]] = {
    "windows": {"model_type": "mistral", "sliding_window": 8},
    "gemma2": {"model_type": "gemma2", "sliding_window": 8, "head_dim": 8},
    "dynamic rope": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
}
RAGGED = [
    (images(1, 1), QUESTIONS),
    (images(2, 2), QUESTIONS[:2]),
    (images(1, 3), QUESTIONS[4:]),
    (images(3, 4), QUESTIONS[2:4]),
    (images(1, 5), []),
]


def tokens(answers: list[list[GeneratedAnswer]]) -> list[list[tuple[int, ...]]]:
    return [[answer.tokens for answer in row] for row in answers]


# The same tokens as transformers


@pytest.mark.parametrize("kind", OWN)
def test_a_ragged_batch_on_the_own_decoder_equals_generate(kind: str) -> None:
    model, processor = build(OWN[kind])
    generator = Generator(model, processor)
    assert generator.why_slow is None
    wanted = expected(model, processor, RAGGED, 10)
    assert len({row for rows in wanted for row in rows}) > 5, "the answers should differ, or the test shows little"
    assert tokens(generator.answer_batch(RAGGED, 10)) == wanted


@pytest.mark.parametrize("kind", OTHERS)
def test_other_language_models_take_their_own_forward(kind: str) -> None:
    model, processor = build(OTHERS[kind])
    generator = Generator(model, processor)
    assert generator.why_slow
    rows = RAGGED[:2]
    # One by one: a window counts the padding of a batch.
    wanted = [[expected(model, processor, [(own, [q])], 6)[0][0] for q in asked] for own, asked in rows]
    assert tokens(generator.answer_batch(rows, 6)) == wanted


def test_one_question_every_way() -> None:
    model, processor = build()
    generator, plain = Generator(model, processor), Generator(model, processor, own_decoder=False)
    own, question = images(2), QUESTIONS[2]
    wanted = expected(model, processor, [(own, [question])], 12)[0][0]
    prefix = generator.prefix(own)
    stream = generator.stream(prefix, question, 12)
    pieces = list(stream)
    [answer] = generator.answer(prefix, [question], 12)
    assert answer.tokens == wanted
    assert stream.answer == answer
    assert len(pieces) > 3
    assert "".join(pieces) == answer.text == processor.tokenizer.decode(wanted, skip_special_tokens=True).strip()
    assert plain.answer(plain.prefix(own), [question], 12)[0].tokens == wanted
    assert generator.answer_batch([(own, [question])], 12)[0][0].tokens == wanted


def test_answers_end_at_any_of_the_end_tokens_each_at_its_own_time() -> None:
    model, processor = build()
    rows = [(images(1, seed), QUESTIONS[: 1 + seed % 3]) for seed in range(8)]
    long = [answer for row in expected(model, processor, rows, 10) for answer in row]
    ends = sorted({2, long[0][3], long[1][6], long[2][1], long[4][0], long[7][8]})
    model.generation_config.eos_token_id = ends
    generator = Generator(model, processor)
    wanted = [tuple(next((a[:i] for i, t in enumerate(a) if t in ends), a)) for a in long]
    assert len({len(a) for a in wanted}) > 3, "they should end at different times, so that rows are let go of"
    for each in (generator, Generator(model, processor, own_decoder=False)):
        answers = [answer for row in each.answer_batch(rows, 10) for answer in row]
        assert [a.tokens for a in answers] == wanted
        assert [a.finished for a in answers] == [len(a) < 10 for a in wanted]


def test_more_questions_than_run_side_by_side() -> None:
    model, processor = build()
    generator = Generator(model, processor)
    asked = [f"{QUESTIONS[i % 5]} {i}" for i in range(2 * SIDE_BY_SIDE + 3)]
    rows = [(images(1), asked), (images(1, 9), asked[:4])]
    assert tokens(generator.answer_batch(rows, 4)) == expected(model, processor, rows, 4)


def test_a_small_buffer_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = build()
    generator = Generator(model, processor)
    whole = generator.answer_batch(RAGGED, 5)
    monkeypatch.setattr("tessera.generation.generate.BUFFER_BYTES", 1)
    runs: list[int] = []
    begin = packed.PackedRun.__init__

    def counted(self: Any, *args: Any) -> None:
        runs.append(1)
        begin(self, *args)

    monkeypatch.setattr(packed.PackedRun, "__init__", counted)
    assert tokens(generator.answer_batch(RAGGED, 5)) == tokens(whole)
    assert len(runs) == 4


def test_without_images() -> None:
    model, processor = build()
    rows: list[Any] = [([], QUESTIONS[:3]), ([], QUESTIONS[3:])]
    assert tokens(Generator(model, processor).answer_batch(rows, 6)) == expected(model, processor, rows, 6)


def test_pixel_values_and_image_features_do_as_well_as_images() -> None:
    model, processor = build()
    generator = Generator(model, processor)
    own = images(2)
    pixels = processor.image_processor(own, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.get_image_features(pixels)
    answers = [generator.answer(generator.prefix(given), QUESTIONS, 6) for given in (own, pixels, features)]
    assert tokens(answers[:1]) == tokens(answers[1:2]) == tokens(answers[2:])


def test_longer_than_the_table_of_rotations() -> None:
    model, processor = build({"max_position_embeddings": 600}, max_length=600)
    generator = Generator(model, processor)
    question = "Is there a dog? " * 60
    rows = [(images(1), [question])]
    assert len(processor.question_ids(question)) > 256
    assert tokens(generator.answer_batch(rows, 40)) == expected(model, processor, rows, 40)


def test_the_probability_is_that_of_the_whole_answer() -> None:
    model, processor = build()
    model.generation_config.suppress_tokens = None
    rows = [(images(1), [QUESTIONS[0]])]
    third = expected(model, processor, rows, 4)[0][0][3]
    model.generation_config.eos_token_id = third
    [answer] = Generator(model, processor).answer_batch(rows, 8)[0]
    ids = processor(images=images(1), text=processor.prompt(QUESTIONS[0]), return_tensors="pt")
    said = [*answer.tokens, third]
    with torch.no_grad():
        whole = torch.cat([ids["input_ids"], torch.tensor([said])], 1)
        logits = model(input_ids=whole, pixel_values=ids["pixel_values"]).logits[0]
    known = logits.log_softmax(-1)[-len(said) - 1 : -1].gather(1, torch.tensor(said)[:, None])
    assert answer.finished
    assert answer.probability == pytest.approx(float(known.sum().exp()), rel=1e-4)


def test_suppressed_tokens_are_never_generated() -> None:
    model, processor = build()
    rows = RAGGED[:2]
    often = {t for row in expected(model, processor, rows, 8) for answer in row for t in answer}
    model.generation_config.suppress_tokens = sorted(often)
    for own in (True, False):
        found = tokens(Generator(model, processor, own_decoder=own).answer_batch(rows, 8))
        assert found == expected(model, processor, rows, 8)
        assert not {t for row in found for answer in row for t in answer} & often


# State


def test_a_prefix_can_be_asked_again_and_by_two_streams_at_once() -> None:
    model, processor = build()
    generator = Generator(model, processor)
    prefix = generator.prefix(images(1))
    first = generator.answer(prefix, QUESTIONS, 8)
    streams = [generator.stream(prefix, question, 8) for question in QUESTIONS[:2]]
    texts = ["", ""]
    for pair in zip(*streams, strict=False):
        texts = [text + piece for text, piece in zip(texts, pair, strict=True)]
    assert generator.answer(prefix, QUESTIONS, 8) == first
    assert all(answer.text.startswith(text) and text for answer, text in zip(first, texts, strict=False))


def test_the_weights_are_those_of_the_construction() -> None:
    model, processor = build()
    generator = Generator(model, processor)
    before = generator.answer_batch(RAGGED[:1], 6)
    with torch.no_grad():
        for parameter in model.model.language_model.layers.parameters():
            parameter.mul_(0.3)
    assert generator.answer_batch(RAGGED[:1], 6) == before
    after = Generator(model, processor).answer_batch(RAGGED[:1], 6)
    assert tokens(after) != tokens(before)
    assert tokens(after) == expected(model, processor, RAGGED[:1], 6)


def test_streaming_leaves_no_inference_mode_behind() -> None:
    model, processor = build()
    generator = Generator(model, processor)
    stream = generator.stream(generator.prefix(images(1)), QUESTIONS[0], 6)
    for _ in stream:
        assert not torch.is_inference_mode_enabled()
        break


def test_a_hooked_model_keeps_its_hooks() -> None:
    model, processor = build()
    handle = model.model.language_model.layers[1].mlp.register_forward_hook(lambda *_: torch.zeros(1))
    generator = Generator(model, processor)
    assert generator.why_slow == "its module layers.1.mlp is hooked"
    assert tokens(generator.answer_batch(RAGGED[:1], 4)) == expected(model, processor, RAGGED[:1], 4)
    handle.remove()
    handle = model.lm_head.register_forward_hook(lambda _m, _i, out: -out)
    generator = Generator(model, processor)
    assert generator.why_slow == "its output layer is hooked"
    assert tokens(generator.answer_batch(RAGGED[:1], 4)) == expected(model, processor, RAGGED[:1], 4)
    handle.remove()
    with_hook_on_tower = model.model.encoders[0].register_forward_hook(lambda _m, _i, out: out * 0)
    blinded = Generator(model, processor).answer_batch(RAGGED[:1], 4)
    assert tokens(blinded) == expected(model, processor, RAGGED[:1], 4)
    with_hook_on_tower.remove()
    assert tokens(blinded) != expected(model, processor, RAGGED[:1], 4)


def test_hidden_states_once_asked_for_do_not_slow_the_model_down() -> None:
    model, processor = build()
    inputs = processor(images=images(1), text=processor.prompt("dog"), return_tensors="pt")
    with torch.no_grad():
        assert model(**inputs, output_hidden_states=True).hidden_states
    assert any(layer._forward_hooks for layer in model.model.language_model.layers), "or there is nothing to see here"
    assert Generator(model, processor).why_slow is None


def test_double_precision() -> None:
    model, processor = build({"num_key_value_heads": 2})
    model.double()
    generator = Generator(model, processor)
    assert generator.why_slow is None
    assert tokens(generator.answer_batch(RAGGED, 8)) == expected(model, processor, RAGGED, 8)


# Sampling


def test_sampling_follows_its_seed() -> None:
    model, processor = build()
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(0.05)
    generator = Generator(model, processor)
    prefix = generator.prefix(images(1))

    def said(**options: Any) -> list[tuple[int, ...]]:
        return [a.tokens for a in generator.answer(prefix, QUESTIONS, 6, Sampling(**options))]

    assert said(temperature=1.0, seed=1) == said(temperature=1.0, seed=1) != said(temperature=1.0, seed=2)
    assert said(temperature=1.0, top_p=1e-9, seed=3) == said()
