"""The dual encoder: its loss, its invariances, its life as a transformers model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tessera.errors import UserError
from tessera.models.configuration import TesseraDualEncoderConfig
from tessera.models.contrast import contrastive_loss
from tessera.models.dual_encoder import TesseraDualEncoder
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.processing import TesseraDualProcessor


@pytest.fixture
def dual(encoder: Callable[..., dict[str, Any]], tokenizer: Any) -> TesseraDualEncoder:
    torch.manual_seed(0)
    config = TesseraDualEncoderConfig(
        encoder=encoder(),
        projection_dim=16,
        pool_heads=2,
        vocab_size=len(tokenizer),
        text_width=24,
        text_depth=2,
        max_position_embeddings=16,
    )
    return TesseraDualEncoder(config).eval()


def test_the_loss_is_the_mean_of_both_directions(dual: TesseraDualEncoder, tokenizer: Any) -> None:
    texts = tokenizer(["a dog", "a red cat", "no"], padding=True, return_tensors="pt")
    out = dual(**texts, pixel_values=torch.randn(3, 3, 32, 32), return_loss=True)
    cosine = out.image_embeds @ out.text_embeds.t()
    torch.testing.assert_close(out.logits_per_image, cosine / 0.07)
    target = torch.arange(3)
    expected = (
        torch.nn.functional.cross_entropy(out.logits_per_image, target)
        + torch.nn.functional.cross_entropy(out.logits_per_text, target)
    ) / 2
    torch.testing.assert_close(out.loss, expected)
    torch.testing.assert_close(contrastive_loss(torch.eye(4) * 1e4), torch.tensor(0.0))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_text_means_the_same_however_it_is_padded(dual: TesseraDualEncoder, tokenizer: Any, attention: str) -> None:
    dual.set_attn_implementation(attention)
    texts = ["a dog", "Is there a red cat?"]
    alone = torch.cat([dual.get_text_features(**tokenizer(t, return_tensors="pt")) for t in texts])
    for side in ("left", "right"):
        batch = tokenizer(texts, padding=True, padding_side=side, return_tensors="pt")
        torch.testing.assert_close(dual.get_text_features(**batch), alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(dual.get_text_features(batch["input_ids"]), alone, rtol=0, atol=1e-5)


def test_every_parameter_gets_a_gradient(dual: TesseraDualEncoder, tokenizer: Any) -> None:
    texts = tokenizer(["a dog", "a red cat"], padding=True, return_tensors="pt")
    dual(**texts, pixel_values=torch.randn(2, 3, 32, 32), return_loss=True).loss.backward()
    for name, parameter in dual.named_parameters():
        if name != "text.position":
            assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name


def test_a_stage_trains_everything_or_the_sockets_that_it_names(dual: TesseraDualEncoder) -> None:
    from tessera.training.plan import Stage, multipliers
    from tessera.training.stages import factors, sockets_of

    sockets, every = sockets_of(dual), {id(p) for p in dual.parameters()}
    assert set(factors(sockets, multipliers(Stage(), sockets), every)) == every
    plan = multipliers(Stage(train={"*": 1.0, "encoder": 0.0, "text": 0.5}), sockets)
    found = factors(sockets, plan, every)
    assert not set(found) & {id(p) for p in dual.encoder.parameters()}
    assert {found[id(p)] for p in dual.text.parameters()} == {0.5}
    assert found[id(dual.logit_scale)] == found[id(dual.pool.query)] == 1.0


def test_save_and_load_are_bit_equal(dual: TesseraDualEncoder, tmp_path: Path) -> None:
    dual.save_pretrained(tmp_path)
    loaded = TesseraDualEncoder.from_pretrained(tmp_path)
    before, after = dual.state_dict(), loaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert loaded.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_the_processor_feeds_it(dual: TesseraDualEncoder, tokenizer: Any, tmp_path: Path) -> None:
    processor = TesseraDualProcessor(TesseraImageProcessor(size=32), tokenizer, max_length=16)
    processor.save_pretrained(tmp_path)
    loaded = TesseraDualProcessor.from_pretrained(tmp_path)
    assert loaded.max_length == 16
    inputs = loaded(images=Image.new("RGB", (20, 10)), text=["a dog", "a red cat"], return_tensors="pt")
    assert dual(**inputs).logits_per_image.shape == (1, 2)
    with pytest.raises(UserError, match="20 tokens, 4 more than the 16"):
        loaded(text="dog " * 20)


def test_mistakes_are_refused(dual: TesseraDualEncoder) -> None:
    ids = torch.ones(1, 20, dtype=torch.long)
    with pytest.raises(UserError, match="20 tokens, 4 more than the 16"):
        dual.get_text_features(ids)
    with pytest.raises(UserError, match="both input_ids and pixel_values"):
        dual(ids[:, :4])
    with pytest.raises(UserError, match="pairs images and texts, but there are 2 and 1"):
        dual(ids[:, :4], torch.zeros(2, 3, 32, 32), return_loss=True)
