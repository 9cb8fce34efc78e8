from __future__ import annotations

import copy

import pytest
import torch
from tests.training.toy import ToyVLM
from torch import nn

from tessera.training.optim import build_optimizer, hidden_matrices, orthogonalize
from tessera.training.plan import OptimConfig


def naive_orthogonalize(matrix: torch.Tensor) -> torch.Tensor:
    """Newton-Schulz with explicit products, one matrix, float64."""
    x = matrix.double()
    transposed = x.shape[0] > x.shape[1]
    x = x.T if transposed else x
    x = x / x.norm()
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if transposed else x


@pytest.mark.parametrize("shape", [(8, 8), (4, 12), (12, 4)])
def test_orthogonalize_equals_naive_and_flattens_singular_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, *shape)
    result = orthogonalize(matrices)
    for matrix, found in zip(matrices, result, strict=True):
        torch.testing.assert_close(found.double(), naive_orthogonalize(matrix), atol=1e-4, rtol=1e-4)
    values = torch.linalg.svdvals(result)
    assert values.min() > 0.3 and values.max() < 1.3
    assert (orthogonalize(matrices, dtype=torch.bfloat16) - result).abs().max() < 0.1


def test_three_steps_equal_naive_updates() -> None:
    """Muon by hand for a matrix, torch's AdamW for the bias and the embedding."""
    config = OptimConfig(lr=3e-3, muon_lr=0.05, weight_decay=0.1, muon_weight_decay=0.2)
    torch.manual_seed(1)
    model = nn.ModuleDict({"linear": nn.Linear(6, 10), "embedding": nn.Embedding(5, 6)})
    reference = copy.deepcopy(model)
    optimizer = build_optimizer(model, {id(p): 0.5 for p in model.parameters()}, config)
    matrix, bias, table = reference["linear"].weight, reference["linear"].bias, reference["embedding"].weight
    adam = torch.optim.AdamW(
        [dict(params=[table], weight_decay=0.1), dict(params=[bias], weight_decay=0.0)],
        lr=3e-3 * 0.5 * 0.7,
        betas=(0.9, 0.98),
    )
    momentum = torch.zeros_like(matrix)
    for step in range(3):
        torch.manual_seed(10 + step)
        for mine, theirs in zip(model.parameters(), reference.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            theirs.grad = mine.grad.clone()
        optimizer.set_factor(0.7)
        optimizer.step()
        adam.step()
        with torch.no_grad():
            assert matrix.grad is not None
            momentum = 0.95 * momentum + matrix.grad
            update = naive_orthogonalize(matrix.grad + 0.95 * momentum).float()
            rate = 0.05 * 0.5 * 0.7
            matrix.copy_(matrix * (1 - rate * 0.2) - rate * (10 / 6) ** 0.5 * update)
    for (name, mine), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4, msg=name)


def test_muon_takes_hidden_matrices_only() -> None:
    model = ToyVLM()
    model.extra = nn.Parameter(torch.zeros(4, 6, 6))
    model.extra.muon = True  # type: ignore[attr-defined]
    model.connector.weight.muon = False  # type: ignore[assignment]
    taken = hidden_matrices(model)
    names = {name for name, p in model.named_parameters() if id(p) in taken}
    assert names == {"blocks.0.weight", "blocks.3.weight", "extra"}


def test_stacked_matrices_are_orthogonalized_one_by_one() -> None:
    torch.manual_seed(0)
    stacked = nn.Parameter(torch.randn(3, 4, 6))
    stacked.muon = True  # type: ignore[attr-defined]
    model = nn.ParameterList([stacked])
    optimizer = build_optimizer(model, {id(stacked): 1.0}, OptimConfig(muon_lr=1.0, muon_weight_decay=0.0))
    before, stacked.grad = stacked.detach().clone(), torch.randn(3, 4, 6)
    optimizer.step()
    for i in range(3):
        torch.testing.assert_close(before[i] - stacked[i], naive_orthogonalize(stacked.grad[i]).float(), atol=1e-4, rtol=1e-4)


def test_adamw_kind_uses_no_muon() -> None:
    model = ToyVLM()
    optimizer = build_optimizer(model, {id(p): 1.0 for p in model.parameters()}, OptimConfig(kind="adamw"))
    assert {group["kind"] for group in optimizer.param_groups} == {"adamw"}


def test_state_dict_round_trip_continues_equally() -> None:
    """As torch.optim.Optimizer promises."""
    models = [ToyVLM(dropout=0.0) for _ in range(2)]
    optimizers = [build_optimizer(m, {id(p): 1.0 for p in m.parameters()}, OptimConfig()) for m in models]

    def update(which: int, seed: int) -> None:
        torch.manual_seed(seed)
        for parameter in models[which].parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizers[which].step()

    update(0, 1)
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    update(0, 2)
    update(1, 2)
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_updates_are_those_of_torch_but_for_the_rounding_of_bfloat16(dtype: torch.dtype) -> None:
    rounded = 15 * 2**-8  # torch iterates in bfloat16: five times three products, each rounded to eight bits
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 16, bias=False), nn.Linear(16, 40, bias=False))
    twin = copy.deepcopy(model)
    config = OptimConfig(kind="muon", muon_lr=0.1, muon_weight_decay=0.1, momentum=0.9)
    ours = build_optimizer(model, {id(p): 1.0 for p in model.parameters()}, config, dtype)
    theirs = torch.optim.Muon(twin.parameters(), lr=0.1, weight_decay=0.1, momentum=0.9, adjust_lr_fn="original")
    for _ in range(3):
        for p, q in zip(model.parameters(), twin.parameters(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        before = [[p.detach().clone() for p in m.parameters()] for m in (model, twin)]
        ours.step()
        theirs.step()
        for p, q, old_p, old_q in zip(model.parameters(), twin.parameters(), *before, strict=True):
            mine, wanted = p.detach() - old_p, q.detach() - old_q
            assert (mine - wanted).norm() < rounded * wanted.norm()
