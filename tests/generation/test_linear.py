"""Packed linear layers compute what plain ones do."""

from __future__ import annotations

import pytest
import torch
from tests.hosts.tiny import build
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.generation import linear
from tessera.generation.linear import FEW, Matrix, PackedLinear, pack, with_packed_linears


@pytest.mark.parametrize("rows", [1, FEW, 33])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_a_matrix_is_several_layers_side_by_side(rows: int, bias: bool, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packed:
        monkeypatch.setattr(linear, "_available", lambda: False)
    torch.manual_seed(0)
    layers = [nn.Linear(24, out, bias=bias) for out in (8, 40)]
    matrix = Matrix([each.weight for each in layers], [each.bias for each in layers])
    assert packed or matrix.packed is None
    x, residual = torch.randn(rows, 24), torch.randn(rows, 48)
    wanted = torch.cat([each(x) for each in layers], 1)
    assert torch.allclose(matrix(x), wanted, atol=1e-5)
    before = residual.clone()
    assert torch.allclose(matrix.onto(residual, x), residual + wanted, atol=1e-5)
    assert torch.equal(residual, before)


def test_only_float32_is_packed() -> None:
    assert pack(torch.zeros(4, 4, dtype=torch.bfloat16)) is None
    assert pack(torch.zeros(4, 4, dtype=torch.float64)) is None


def test_a_pytorch_without_the_operators_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    linear._available.cache_clear()
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    try:
        assert pack(torch.zeros(4, 4)) is None
    finally:
        linear._available.cache_clear()


def test_a_packed_twin_shares_its_parameters_and_leaves_the_module_alone() -> None:
    class Own(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.weight) + 1

    module = nn.Sequential(nn.Linear(4, 6), nn.ModuleList([nn.LayerNorm(6)])[0], Own(6, 3))
    twin = with_packed_linears(module)
    assert [type(m) for m in module] == [nn.Linear, nn.LayerNorm, Own]
    if linear._available():
        assert [type(m) for m in twin.children()] == [PackedLinear, nn.LayerNorm, Own]
    assert [id(p) for p in twin.parameters()] == [id(p) for p in module.parameters()]
    x = torch.randn(2, 5, 4)
    assert torch.allclose(twin(x), module(x), atol=1e-6)


def test_packed_towers_give_the_same_features() -> None:
    from tessera.generation.packed import towers

    model, _ = build()
    twin = towers(model.model)
    pixels = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(twin.get_image_features(pixels), model.get_image_features(pixels), atol=1e-4, rtol=1e-5)
    assert twin.language_model is model.model.language_model


def test_a_twin_has_no_dropout_even_of_a_model_in_training() -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train()
    twin = with_packed_linears(module)
    assert module.training
    assert module[1].training
    x = torch.randn(8, 4)
    assert torch.equal(twin(x), twin(x))
    assert not any(isinstance(m, PackedLinear) for m in module)


def test_towers_of_a_model_stay_as_they_are() -> None:
    from tessera.generation.packed import towers

    model, _ = build()
    towers(model.model)
    assert not any(isinstance(m, PackedLinear) for m in model.modules())
