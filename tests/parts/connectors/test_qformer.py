from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.copies import assert_same_model
from torch import Tensor, nn

from tessera.config import build
from tessera.errors import UserError
from tessera.models.configuration import TesseraConfig
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.nn.qformer import QFormer, gather
from tessera.nn.tokens import QuestionText, from_grid
from tessera.parts.connectors.qformer import InstructQFormer

SMALL: dict[str, Any] = {"queries": 3, "width": 16, "depth": 3, "heads": 2, "mlp_ratio": 2, "positions": 8}
IMAGE, ASSISTANT = 4, 7


def made(**options: Any) -> InstructQFormer:
    part = InstructQFormer(build(InstructQFormer.Config, {**SMALL, **options}), 10, 12).eval()
    for parameter in part.parameters():
        nn.init.normal_(parameter, std=0.3)
    return part


def by_hand(core: QFormer, queries: Tensor, memory: Tensor, text: Tensor, heads: int) -> Tensor:
    """One image, one question without padding, one head and one token at a time: what BERT's layers say."""

    def attention(part: Any, x: Tensor, seen: Tensor) -> Tensor:
        q, k, v = part.query(x), part.key(seen), part.value(seen)
        size = q.shape[1] // heads
        mixed = []
        for h in range(heads):
            own = slice(h * size, (h + 1) * size)
            rows = [torch.stack([row[own] @ key[own] for key in k]).div(size**0.5).softmax(0) @ v[:, own] for row in q]
            mixed.append(torch.stack(rows))
        return part.norm(x + part.out(torch.cat(mixed, dim=1)))

    def forward(part: Any, x: Tensor) -> Tensor:
        return part.norm(x + part.down(nn.functional.gelu(part.up(x))))

    assert core.positions is not None
    x = core.norm(torch.cat([queries, text + core.positions.weight[: len(text)]]))
    for number, layer in enumerate(core.layers):
        made: Any = layer
        x = attention(made.attention, x, x)
        asking, said = x[: len(queries)], x[len(queries) :]
        if number % 2 == 0:
            asking = attention(made.cross, asking, memory)
        asking = forward(made.of_queries, asking)
        x = asking if made.of_text is None else torch.cat([asking, forward(made.of_text, said)])
    return x


@torch.no_grad()
def test_it_equals_a_loop() -> None:
    torch.manual_seed(0)
    part = made()
    memory, words = torch.randn(1, 6, 10), torch.randn(1, 4, 12)
    question = QuestionText(embeddings=words, mask=torch.ones(1, 4, dtype=torch.bool))
    found = part(from_grid(memory, (2, 3)), question).features[0]
    assert part.text is not None
    wanted = by_hand(part.qformer, part.queries[0], memory[0], part.text(words[0]), 2)
    torch.testing.assert_close(found, part.project(wanted), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_padding_anywhere_changes_nothing_and_rows_are_alone() -> None:
    torch.manual_seed(0)
    part = made()
    tokens = from_grid(torch.randn(2, 6, 10), (2, 3))
    words = torch.randn(2, 3, 12)
    plain = QuestionText(embeddings=words, mask=torch.tensor([[True, True, True], [True, True, False]]))
    mask = torch.tensor([[False, True, False, True, True, False], [True, False, True, False, False, False]])
    spread = torch.randn(2, 6, 12)
    spread[mask] = words[plain.mask]
    found = part(tokens, plain).features
    torch.testing.assert_close(found, part(tokens, QuestionText(embeddings=spread, mask=mask)).features)
    alone = part(from_grid(tokens.features[1:], (2, 3)), QuestionText(embeddings=words[1:, :2], mask=plain.mask[1:, :2]))
    torch.testing.assert_close(found[1:], alone.features)


def test_gathered_text_keeps_its_order() -> None:
    text = torch.arange(5.0).reshape(1, 5, 1)
    found, mask = gather(text, torch.tensor([[False, True, False, True, True]]))
    assert found.flatten().tolist() == [1, 3, 4] and mask.all()
    nothing, mask = gather(text, torch.zeros(1, 5, dtype=torch.bool))
    assert nothing.shape == (1, 0, 1) and mask.shape == (1, 0)


@torch.no_grad()
def test_tokens_that_are_not_there_are_not_seen() -> None:
    part = made(reads_question=False)
    tokens = from_grid(torch.randn(1, 6, 10), (2, 3))
    tokens.mask = torch.tensor([[True, True, False, True, True, False]])
    before = part(tokens).features
    tokens.features[:, [2, 5]] += 1
    assert torch.equal(part(tokens).features, before)


@torch.no_grad()
def test_places_tell_tokens_apart_that_look_alike() -> None:
    tokens = from_grid(torch.ones(1, 4, 10), (2, 2))
    moved = from_grid(torch.ones(1, 4, 10), (2, 2))
    moved.positions = moved.positions.flip(-1) * 0.5
    for places in (False, True):
        part = made(reads_question=False, places=places)
        assert torch.equal(part(tokens).features, part(moved).features) != places


def test_every_weight_learns_with_and_without_a_question() -> None:
    question = QuestionText(embeddings=torch.randn(2, 8, 12), mask=torch.ones(2, 8, dtype=torch.bool))
    for part, given in ((made(places=True), (question,)), (made(reads_question=False), ())):
        part(from_grid(torch.randn(2, 6, 10), (2, 3)), *given).features.square().sum().backward()
        assert all(p.grad is not None and bool(p.grad.any()) for n, p in part.named_parameters() if not n.endswith("key.bias"))


def test_a_missing_and_a_long_question_are_refused() -> None:
    part = made()
    tokens = from_grid(torch.randn(1, 6, 10), (2, 3))
    with pytest.raises(UserError, match="reads the question to see the image"):
        part(tokens)
    long = QuestionText(embeddings=torch.randn(1, 9, 12), mask=torch.ones(1, 9, dtype=torch.bool))
    with pytest.raises(UserError, match="has 9 tokens, connectors 'qformer' reads 8"):
        part(tokens, long)
    with pytest.raises(UserError, match="width 16 cannot be divided among 3 heads"):
        made(heads=3)
    with pytest.raises(UserError, match="at least 1"):
        made(queries=0)


# In the composed model


def composed(**options: Any) -> Any:
    torch.manual_seed(3)
    encoder = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "heads": 2}
    text = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "vocab_size": 32}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 2, "pad_token_id": 0, "eos_token_id": 2, "bos_token_id": 1}
    parts = {"encoders": [encoder], "connector": {"kind": "qformer", **SMALL, **options}}
    return TesseraForConditionalGeneration(TesseraConfig(parts=parts, text_config=text)).eval()


def row(*question: int) -> Tensor:
    return torch.tensor([[1, IMAGE, IMAGE, IMAGE, 6, *question, ASSISTANT]])


@torch.no_grad()
def test_what_the_model_reads_of_an_image_depends_on_the_question_and_never_on_the_answer() -> None:
    model = composed()
    assert model.reads_question and model.tokens_per_image == 3
    pixels = torch.randn(1, 3, 32, 32)

    def seen(ids: Tensor, **more: Any) -> Tensor:
        return model(input_ids=ids, pixel_values=pixels, **more).image_hidden_states

    assert not torch.allclose(seen(row(9, 10)), seen(row(11, 12)))
    asked = row(9, 10)
    for answer in (20, 21):
        whole = torch.cat([asked, torch.tensor([[answer, 2]])], dim=1)
        labels = whole.masked_fill(torch.arange(whole.shape[1]) < asked.shape[1], -100)
        torch.testing.assert_close(seen(whole, labels=labels), seen(asked))


@torch.no_grad()
def test_padding_batches_and_stored_features_give_the_same() -> None:
    model = composed()
    pixels = torch.randn(2, 3, 32, 32)
    rows = [row(9, 10, 11), row(12)]
    alone = [model(input_ids=r, pixel_values=pixels[i : i + 1]).logits[:, -1] for i, r in enumerate(rows)]
    padded = torch.cat([rows[0], torch.cat([torch.zeros(1, 2, dtype=torch.long), rows[1]], dim=1)])
    mask = torch.ones_like(padded)
    mask[1, :2] = 0
    both = model(input_ids=padded, attention_mask=mask, pixel_values=pixels)
    torch.testing.assert_close(both.logits[:, -1], torch.cat(alone), atol=1e-5, rtol=1e-4)
    stored = model(input_ids=padded, attention_mask=mask, visual_features=model.encode_images(pixels).features)
    torch.testing.assert_close(stored.logits, both.logits)
    with pytest.raises(UserError, match="reads the question to see the image"):
        model.get_image_features(pixels)


def test_a_packed_row_of_several_questions_is_refused() -> None:
    model = composed()
    ids = torch.cat([row(9), torch.tensor([[2, 6, 10, ASSISTANT]])], dim=1)
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]])
    with pytest.raises(UserError, match="a packed row can hold only one"):
        model(input_ids=ids, segment_ids=segments, pixel_values=torch.randn(1, 3, 32, 32))
    model(input_ids=row(9), segment_ids=segments[:, :7], pixel_values=torch.randn(1, 3, 32, 32))


@torch.no_grad()
def test_cached_generation_equals_computing_everything_again() -> None:
    model = composed()
    pixels = torch.randn(1, 3, 32, 32)
    ids = row(9, 10)
    found = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=4, do_sample=False, eos_token_id=None)
    for _ in range(4):
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, : row(9, 10).shape[1]] = True
        logits = model(input_ids=ids, pixel_values=pixels, question_mask=mask).logits[:, -1]
        logits[:, IMAGE] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1)[:, None]], dim=1)
    assert torch.equal(found, ids)


def test_without_a_question_it_is_an_ordinary_connector(tmp_path: Path) -> None:
    model = composed(reads_question=False)
    assert not model.reads_question
    pixels = torch.randn(1, 3, 32, 32)
    assert model.get_image_features(pixels).shape == (1, 3, 16)
    model.save_pretrained(tmp_path)
    again = TesseraForConditionalGeneration.from_pretrained(tmp_path)
    assert_same_model(again, model, lambda m: m.get_image_features(pixels))
