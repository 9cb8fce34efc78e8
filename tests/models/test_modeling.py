"""The composed model: equivalences that must hold whatever its weights are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.copies import assert_same_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from tessera.data.packing import collate, pack, unpack
from tessera.errors import UserError
from tessera.models.configuration import TesseraConfig
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.processing import TesseraProcessor

QUESTIONS = [("Is there a dog?", "yes"), ("What does the sign say?", "TEA 7"), ("Where is the cat?", "left")]


def pixels(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def packed(processor: TesseraProcessor, images: int = 1) -> Any:
    items = [(processor.question_ids(q), processor.answer_ids(a), None) for q, a in QUESTIONS]
    return pack(processor.prefix_ids(images), items, 128)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("images", [1, 2])
def test_packed_loss_equals_unpacked_loss(
    model: TesseraForConditionalGeneration, processor: TesseraProcessor, attention: str, images: int
) -> None:
    model.set_attn_implementation(attention)
    row = packed(processor, images)
    image = pixels(images)
    together = model(**collate([row], image))
    alone = [model(**collate([single], image)) for single in unpack(row)]
    total, weight = sum(a.loss_sum for a in alone), sum(a.loss_weight for a in alone)
    torch.testing.assert_close(together.loss_sum, total, rtol=0, atol=1e-5)
    torch.testing.assert_close(together.loss, total / weight, rtol=0, atol=1e-6)


def test_packed_gradients_equal_unpacked_gradients(model: TesseraForConditionalGeneration, processor: TesseraProcessor) -> None:
    row, image = packed(processor), pixels(1)
    model(**collate([row], image)).loss_sum.backward()
    together = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for single in unpack(row):
        model(**collate([single], image)).loss_sum.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(together[name], parameter.grad, rtol=1e-4, atol=2e-5)


def test_positions_are_derived_from_segments(model: TesseraForConditionalGeneration, processor: TesseraProcessor) -> None:
    batch = collate([packed(processor)], pixels(1))
    given = model(**batch).loss_sum
    del batch["position_ids"]
    torch.testing.assert_close(model(**batch).loss_sum, given, rtol=0, atol=0)


def test_loss_is_the_weighted_mean_of_the_next_tokens_cross_entropy(
    model: TesseraForConditionalGeneration, processor: TesseraProcessor
) -> None:
    batch = collate([unpack(packed(processor))[1]], pixels(1))
    out = model(**batch)
    labels, weights = batch.pop("labels"), batch.pop("loss_weights")
    logits = model(**batch).logits
    each = torch.nn.functional.cross_entropy(logits[0, :-1], labels[0, 1:], reduction="none", ignore_index=-100)
    expected = (each * weights[0, 1:]).sum() / weights[0, 1:].sum()
    torch.testing.assert_close(out.loss, expected, rtol=0, atol=1e-6)
    assert out.logits is None


def test_unlabelled_batch_has_zero_loss_and_finite_gradients(model: TesseraForConditionalGeneration) -> None:
    ids = torch.tensor([[1, 5, 4, 4, 4, 4, 6, 20]])
    out = model(ids, pixels(1), labels=torch.full_like(ids, -100))
    out.loss.backward()
    assert out.loss.item() == 0 == out.loss_weight.item()


def test_logits_come_with_the_loss_when_the_configuration_says_so(
    config: Callable[..., TesseraConfig],
) -> None:
    model = TesseraForConditionalGeneration(config(logits_with_loss=True))
    ids = torch.tensor([[1, 6, 20, 7, 30, 2]])
    assert model(ids, labels=ids).logits.shape == (1, 6, model.config.text_config.vocab_size)
    halves = model(ids, labels=ids, num_items_in_batch=10).loss
    torch.testing.assert_close(halves, model(ids, labels=ids).loss_sum / 10)


def prompts(processor: TesseraProcessor, rows: list[tuple[str, int]]) -> Any:
    text = [processor.prompt(question, images) for question, images in rows]
    return processor.tokenizer(
        [t.replace("<image>", "<image>" * processor.tokens_per_image) for t in text],
        add_special_tokens=False,
        padding=True,
        return_tensors="pt",
    )


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_left_padded_batch_equals_singles(
    model: TesseraForConditionalGeneration, processor: TesseraProcessor, attention: str
) -> None:
    model.set_attn_implementation(attention)
    rows = [("Is there a dog?", 1), ("What does the sign say above the red fire engine?", 2), ("no", 0)]
    images = pixels(3)
    batch = prompts(processor, rows)
    together = model(**batch, pixel_values=images).logits[:, -1]
    first = 0
    for row, (question, count) in enumerate(rows):
        own = images[first : first + count] if count else None
        alone = model(**prompts(processor, [(question, count)]), pixel_values=own).logits[0, -1]
        torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-5)
        first += count
    generated = model.generate(**batch, pixel_values=images, max_new_tokens=6, do_sample=False)
    lone = model.generate(**prompts(processor, rows[1:2]), pixel_values=images[1:], max_new_tokens=6, do_sample=False)
    new = generated[1, batch["input_ids"].shape[1] :]
    assert new[: lone.shape[1]].tolist()[:6] == lone[0, -len(new) :].tolist()[:6]


def test_cached_equals_uncached(model: TesseraForConditionalGeneration, processor: TesseraProcessor) -> None:
    inputs = prompts(processor, [("Is there a dog?", 2)])
    images = pixels(2)
    whole = model(**inputs, pixel_values=images).logits
    ids = inputs["input_ids"]
    first = model(ids[:, :-3], images, use_cache=True)
    rest = model(ids[:, -3:], past_key_values=first.past_key_values, attention_mask=inputs["attention_mask"])
    torch.testing.assert_close(rest.logits, whole[:, -3:], rtol=0, atol=1e-5)
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pixel_values": images}
    assert torch.equal(model.generate(**inputs, **options), model.generate(**inputs, **options, use_cache=False))


def test_packed_rows_continue_from_a_cache(model: TesseraForConditionalGeneration, processor: TesseraProcessor) -> None:
    batch = collate([packed(processor)], pixels(1), length=len(packed(processor)))
    labels = batch.pop("labels")
    batch.pop("loss_weights")
    batch.pop("position_ids")
    whole = model(**batch).logits
    ids, segments = batch["input_ids"], batch["segment_ids"]
    cut = int((segments == 0).sum())
    first = model(ids[:, :cut], batch["pixel_values"], segment_ids=segments[:, :cut], use_cache=True)
    rest = model(ids[:, cut:], segment_ids=segments, past_key_values=first.past_key_values)
    torch.testing.assert_close(rest.logits, whole[:, cut:], rtol=0, atol=1e-5)
    assert labels.shape == ids.shape


def test_images_may_be_given_at_every_stage(model: TesseraForConditionalGeneration, processor: TesseraProcessor) -> None:
    inputs = prompts(processor, [("Is there a dog?", 2)])
    images = pixels(2)
    expected = model(**inputs, pixel_values=images).logits
    features = model.get_image_features(images)
    assert features.shape == (2, model.tokens_per_image, 32)
    assert torch.equal(model(**inputs, image_features=features).logits, expected)
    assert torch.equal(model(**inputs, visual_features=model.encode_images(images).features).logits, expected)
    embeddings = model.model.embed(inputs["input_ids"], features)
    without_ids = model(inputs_embeds=embeddings, attention_mask=inputs["attention_mask"]).logits
    torch.testing.assert_close(without_ids, expected, rtol=0, atol=1e-6)


def test_several_candidates_per_row_keep_their_own_images(
    model: TesseraForConditionalGeneration, processor: TesseraProcessor
) -> None:
    rows = [("Is there a dog?", 2), ("Is there a cat?", 1)]
    options: dict[str, Any] = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 1}
    batch = prompts(processor, rows)
    together = model.generate(**batch, pixel_values=pixels(3), do_sample=False, **options)
    for row, (question, own) in enumerate(zip(rows, (slice(0, 2), slice(2, 3)), strict=True)):
        inputs = prompts(processor, [question])
        alone = model.generate(**inputs, pixel_values=pixels(3)[own], do_sample=False, **options)
        new = alone[0, inputs["input_ids"].shape[1] :]
        assert together[row, batch["input_ids"].shape[1] :][: len(new)].tolist() == new.tolist()


def test_generation_never_writes_a_placeholder(model: TesseraForConditionalGeneration) -> None:
    with torch.no_grad():
        model.get_input_embeddings().weight[model.config.image_token_id] = 100.0
    out = model.generate(torch.tensor([[1, 6, 20, 7]]), max_new_tokens=10, do_sample=False)
    assert model.config.image_token_id not in out[0].tolist()


def test_gradient_reaches_every_socket(model: TesseraForConditionalGeneration, processor: TesseraProcessor) -> None:
    model.train()
    model(**collate([packed(processor)], pixels(1))).loss.backward()
    sockets = model.sockets()
    assert list(sockets) == [
        "encoders.0", "encoders.1", "experts", "tokens", "connector", "coupling", "language_model",
    ]  # fmt: skip
    for name, module in sockets.items():
        for path, parameter in module.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), f"{name}.{path}"
    counted = {id(p) for module in sockets.values() for p in module.parameters()}
    assert counted == {id(p) for p in model.parameters()}


def test_encoders_of_other_sizes_get_resized_images(
    config: Callable[..., TesseraConfig], encoder: Callable[..., dict[str, Any]]
) -> None:
    model = TesseraForConditionalGeneration(config({"encoders": [encoder(), encoder(image_size=16, patch_size=4)]}))
    assert model.image_size == 32
    assert model.get_image_features(pixels(1)).shape == (1, 4, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_save_and_load_are_bit_equal(model: TesseraForConditionalGeneration, tmp_path: Path, dtype: torch.dtype) -> None:
    for parameter in model.parameters():  # model.to(dtype) would round the rotary frequencies too, which no file holds
        parameter.data = parameter.data.to(dtype)
    model.save_pretrained(tmp_path)
    loaded = TesseraForConditionalGeneration.from_pretrained(tmp_path, dtype=dtype).eval()
    before, after = model.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert loaded.config.to_dict()["parts"] == model.config.to_dict()["parts"]
    assert loaded.generation_config.suppress_tokens == [model.config.image_token_id]
    inputs = torch.tensor([[1, 5, 4, 4, 4, 4, 6, 20]])
    assert loaded(inputs, pixels(1)).logits.dtype == dtype
    assert_same_model(loaded, model, lambda m: m(inputs, pixels(1)).logits)


def test_untied_heads_are_saved_apart(config: Callable[..., TesseraConfig], text_config: dict[str, Any], tmp_path: Path) -> None:
    model = TesseraForConditionalGeneration(config(text_config=text_config | {"tie_word_embeddings": False}))
    assert not model.all_tied_weights_keys
    model.save_pretrained(tmp_path)
    loaded = TesseraForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.get_output_embeddings().weight, model.get_output_embeddings().weight)
    assert not torch.equal(loaded.get_output_embeddings().weight, loaded.get_input_embeddings().weight)


def test_attention_implementations_agree(model: TesseraForConditionalGeneration) -> None:
    inputs = torch.tensor([[1, 5, 4, 4, 4, 4, 6, 20]])
    model.set_attn_implementation("eager")
    eager = model(inputs, pixels(1)).logits
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(model(inputs, pixels(1)).logits, eager, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "granite", "cohere"])
def test_other_language_models_work_with_their_own_heads(config: Callable[..., TesseraConfig], tokenizer: Any, kind: str) -> None:
    sizes = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    if kind == "gpt2":
        sizes |= {"n_embd": 32, "n_layer": 1, "n_head": 2}
    else:
        sizes |= {
            "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
            "num_key_value_heads": 2,
        }  # fmt: skip
    sizes |= {"head_dim": 16} if kind == "gemma2" else {}
    sizes |= {"logits_scaling": 3.0} if kind == "granite" else {}
    model = TesseraForConditionalGeneration(config(text_config={"model_type": kind, **sizes})).eval()
    ids = torch.tensor([[1, 6, 20, 30, 7]])
    causal = AutoModelForCausalLM.from_config(model.config.text_config).eval()
    causal.base_model.load_state_dict(model.model.language_model.state_dict())
    causal.get_output_embeddings().load_state_dict(model.lm_head.state_dict())
    theirs = causal(ids).logits
    torch.testing.assert_close(model(ids).logits, theirs, rtol=0, atol=1e-5)


BAD_INPUTS = [
    ({"input_ids": [[1, 4, 4, 4, 6]], "pixels": 1}, "holds 3 image placeholder tokens"),
    ({"input_ids": [[1, 4, 4, 4, 4, 6]], "pixels": 2}, "4 image placeholder tokens .* 2 image"),
    ({"input_ids": [[1, 4, 6]]}, "no image was given"),
    ({}, "exactly one of input_ids"),
    ({"input_ids": [[1, 6]], "segment_ids": [[0]]}, "segment_ids cover 1 tokens"),
]


@pytest.mark.parametrize(("inputs", "message"), BAD_INPUTS)
def test_contradictions_are_refused_in_words(
    model: TesseraForConditionalGeneration, inputs: dict[str, Any], message: str
) -> None:
    tensors = {k: torch.tensor(v) for k, v in inputs.items() if k != "pixels"}
    if "pixels" in inputs:
        tensors["pixel_values"] = pixels(inputs["pixels"])
    with pytest.raises(UserError, match=message):
        model(**tensors)


def test_misshapen_images_are_refused(model: TesseraForConditionalGeneration) -> None:
    with pytest.raises(UserError, match=r"\[3, 32, 32\]"):
        model.get_image_features(torch.zeros(1, 3, 40, 40))
    with pytest.raises(UserError, match="pixel_values must be"):
        model.get_image_features(torch.zeros(3, 32, 32))
    with pytest.raises(UserError, match="only one of"):
        model(torch.tensor([[1]]), pixels(1), image_features=torch.zeros(1, 4, 32))
