"""The experts by themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tessera.errors import UserError
from tessera.models.configuration import TesseraVisionConfig
from tessera.models.vision import ATTRIBUTE_SHARE, TesseraVisionModel


@pytest.fixture
def expert(encoder: Callable[..., dict[str, Any]]) -> TesseraVisionModel:
    torch.manual_seed(0)
    return TesseraVisionModel(TesseraVisionConfig(encoder=encoder(), id2label={0: "dog", 1: "cat", 2: "sign"}))


def test_dense_labels(expert: TesseraVisionModel) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    labels = torch.randint(0, 3, (2, 16))
    labels[:, 5:] = -100
    out = expert(pixels, labels)
    assert out.logits.shape == (2, 16, 3)
    assert out.last_hidden_state.shape == (2, 16, 24)
    expected = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(out.loss, expected)
    weights = torch.rand(2, 16)
    weighted = expert(pixels, labels, weights).loss
    each = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), labels.flatten(), reduction="none")
    keep = labels.flatten() != -100
    torch.testing.assert_close(weighted, (each * weights.flatten())[keep].sum() / weights.flatten()[keep].sum())
    torch.testing.assert_close(weighted, expert(pixels, labels, weights).loss_sum / weights.flatten()[keep].sum())


def test_attributes_add_to_the_loss_and_keep_their_names_order(encoder: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = TesseraVisionConfig(
        encoder=encoder(), num_labels=3, attributes={"tint": ["none", "red", "blue"], "style": ["a", "b"]}
    )
    assert list(config.attributes) == ["style", "tint"], "the order in which configurations are saved"
    model = TesseraVisionModel(config).eval()
    pixels, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 16))
    told = torch.stack([torch.randint(0, 2, (2, 16)), torch.randint(0, 3, (2, 16))], -1)
    told[:, 9:] = -100
    out = model(pixels, labels, attribute_labels=told)
    assert [a.shape for a in out.attributes] == [(2, 16, 2), (2, 16, 3)]
    of_attributes = sum(
        torch.nn.functional.cross_entropy(a[:, :9].flatten(0, 1), told[:, :9, i].flatten(), reduction="sum")
        for i, a in enumerate(out.attributes)
    )
    torch.testing.assert_close(out.loss, model(pixels, labels).loss + ATTRIBUTE_SHARE * of_attributes / 32)
    model.save_pretrained(tmp_path)
    again = TesseraVisionModel.from_pretrained(tmp_path).eval()(pixels)
    assert all(torch.equal(a, b) for a, b in zip(out.attributes, again.attributes, strict=True))
    with pytest.raises(UserError, match="1 attributes were given, but this model has 2"):
        model(pixels, labels, attribute_labels=told[..., :1])
    with pytest.raises(UserError, match=r"attributes\['tint'\] must be two or more names"):
        TesseraVisionConfig(encoder=encoder(), attributes={"tint": "red"})


def test_without_head(encoder: Callable[..., dict[str, Any]]) -> None:
    model = TesseraVisionModel(TesseraVisionConfig(encoder=encoder()))
    out = model(torch.randn(1, 3, 32, 32))
    assert out.logits is None
    assert model.grid == (4, 4)
    with pytest.raises(UserError, match="no head"):
        model(torch.randn(1, 3, 32, 32), torch.zeros(1, 16, dtype=torch.long))


def test_save_and_load_are_bit_equal(expert: TesseraVisionModel, tmp_path: Path) -> None:
    expert.save_pretrained(tmp_path)
    loaded = TesseraVisionModel.from_pretrained(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(expert.state_dict().values(), loaded.state_dict().values(), strict=True))
    assert loaded.config.id2label == {0: "dog", 1: "cat", 2: "sign"}


def test_a_missing_tensor_is_drawn_by_the_parts_own_rule(expert: TesseraVisionModel, tmp_path: Path) -> None:
    state = expert.state_dict()
    del state["encoder.blocks.0.attention.out.weight"]
    expert.save_pretrained(tmp_path, state_dict=state)
    loaded = TesseraVisionModel.from_pretrained(tmp_path)
    drawn = loaded.encoder.blocks[0].attention.out.weight
    assert 0 < drawn.std() < 0.03
    assert torch.equal(loaded.encoder.position, expert.encoder.position)


def test_initialisation_is_drawn_once_and_is_not_degenerate(encoder: Callable[..., dict[str, Any]]) -> None:
    model = TesseraVisionModel(TesseraVisionConfig(encoder=encoder(width=96, heads=3, depth=2), num_labels=10))
    block = model.encoder.blocks[1]
    assert block.attention.qkv.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.mlp.down.weight.std().item() == pytest.approx(0.02 / 4**0.5, rel=0.1)
    assert model.encoder.position.std().item() == pytest.approx(0.02, rel=0.1)
    assert block.local.weight.abs().max().item() <= 1 / 3
    for name, parameter in model.named_parameters():
        assert bool(parameter.isfinite().all()), name
        assert parameter.ndim == 1 or parameter.std() > 0, name


def test_every_parameter_gets_a_gradient(expert: TesseraVisionModel) -> None:
    expert(torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 16))).loss.backward()
    for name, parameter in expert.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), name
