"""Routing with capacity, the balance loss and upcycling, against loops over tokens."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from tessera.nn.moe import MixtureOfExperts, route


def looped(logits: Tensor, k: int, capacity: float | None, real: list[bool]) -> Tensor:
    """Weights [N, E] of every expert for every token."""
    count, experts = logits.shape
    shares = logits.softmax(-1)
    order = shares.argsort(-1, descending=True)
    room = math.inf if capacity is None else math.ceil(capacity * k * sum(real) / experts)
    taken = [0] * experts
    weights = torch.zeros(count, experts)
    for choice in range(k):
        for token in range(count):
            expert = int(order[token, choice])
            if real[token] and taken[expert] < room:
                taken[expert] += 1
                weights[token, expert] = shares[token, expert]
    return weights if k == 1 else weights / weights.sum(-1, keepdim=True).clamp_min(1e-9)


@pytest.mark.parametrize("capacity", [None, 0.5, 1.0, 1.5])
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_routing_equals_a_loop(k: int, capacity: float | None) -> None:
    logits = torch.randn(40, 4, generator=torch.Generator().manual_seed(k)) + torch.tensor([1.0, 0.5, 0.0, 0.0])
    real = [i % 7 != 0 for i in range(40)]
    found = route(logits, k, capacity, torch.tensor(real))
    weights = torch.zeros(40, 4).scatter(1, found.experts, found.weights)
    torch.testing.assert_close(weights, looped(logits, k, capacity, real), rtol=0, atol=1e-6)
    sent = [float((weights[:, i] > 0).sum()) / (sum(real) * k) for i in range(4)]
    torch.testing.assert_close(found.load(), torch.tensor(sent))


@pytest.mark.parametrize("capacity", [None, 1.0])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_router_learns_from_the_output(k: int, capacity: float | None) -> None:
    """Its gradient is that of the loop, and not zero, however many experts a token goes to."""
    layer = MixtureOfExperts(mlp(), 6, 4, k, capacity).train()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(30, 6)
    weights = looped(layer.router(x), k, capacity, [True] * 30)
    made = torch.stack([expert(x) for expert in layer.experts], dim=1).detach()
    (expected,) = torch.autograd.grad((weights[..., None] * made).sum(1).square().sum(), layer.router.weight)
    layer(x).square().sum().backward()
    assert float(expected.abs().max()) > 1e-2
    torch.testing.assert_close(layer.router.weight.grad, expected, rtol=1e-4, atol=1e-4)


def test_top_1_keeps_the_routers_probability() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(9.0), 0.0], [0.0, 0.0]])
    torch.testing.assert_close(route(logits, 1, None).weights.flatten(), torch.tensor([0.75, 0.9, 0.5]))
    torch.testing.assert_close(route(logits, 2, None).weights.sum(-1), torch.ones(3))


def test_balance_is_one_when_even_and_grows_to_the_number_of_experts() -> None:
    assert abs(float(route(torch.eye(4).repeat(3, 1) * 60, 2, None).balance()) - 1) < 1e-6
    one = torch.tensor([[60.0, 0, 0, 0]]).expand(8, 4)
    assert abs(float(route(one, 2, None).balance()) - 4) < 1e-6
    logits = torch.randn(30, 4, requires_grad=True)
    route(logits, 2, None).balance().backward()
    assert logits.grad is not None and float(logits.grad.abs().sum()) > 0


def test_padding_does_not_count_in_the_balance() -> None:
    logits = torch.randn(12, 4)
    real = torch.arange(12) < 7
    torch.testing.assert_close(route(logits, 2, None, real).balance(), route(logits[:7], 2, None).balance())


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 10), nn.GELU(), nn.Linear(10, 6))


def test_output_is_the_weighted_sum_of_the_chosen_experts() -> None:
    layer = MixtureOfExperts(mlp(), 6, 4, 2)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, 5, 6)
    weights = looped(layer.router(x.view(10, 6)), 2, None, [True] * 10).view(2, 5, 4)
    expected = sum(weights[..., i : i + 1] * expert(x) for i, expert in enumerate(layer.experts))
    torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-5)


def test_capacity_binds_in_training_only_and_dropped_tokens_get_nothing() -> None:
    layer = MixtureOfExperts(mlp(), 6, 4, 1, capacity=0.5)
    nn.init.zeros_(layer.router.weight)
    x = torch.randn(1, 16, 6)
    assert bool((layer.eval()(x).abs().sum(-1) > 0).all())
    assert int((layer.train()(x).abs().sum(-1) > 0).sum()) == 2  # ceil(0.5 * 16 / 4)


def test_padding_goes_nowhere() -> None:
    layer = MixtureOfExperts(mlp(), 6, 4, 2)
    x, real = torch.randn(1, 6, 6), torch.tensor([[True, False, True, True, False, True]])
    layer.real = real
    out = layer(x)
    assert torch.equal(out[~real], torch.zeros(2, 6))
    assert layer.routing is not None and abs(float(layer.routing.load().sum()) - 1) < 1e-6


def test_dense_weights_make_every_expert_alike_and_experts_load_as_they_are() -> None:
    dense, layer = mlp(), MixtureOfExperts(mlp(), 6, 4, 2)
    router = layer.router.weight.clone()
    holder = nn.ModuleDict({"mlp": layer})
    holder.load_state_dict({f"mlp.{name}": value for name, value in dense.state_dict().items()})
    assert torch.equal(layer.router.weight, router)
    x = torch.randn(3, 6)
    torch.testing.assert_close(layer(x), dense(x), rtol=0, atol=1e-6)
    nn.init.normal_(layer.experts[2][0].weight)  # type: ignore[index]
    other = MixtureOfExperts(mlp(), 6, 4, 2)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_with_one_expert_a_token_dense_weights_come_out_times_the_routers_probability() -> None:
    dense, layer = mlp(), MixtureOfExperts(mlp(), 6, 4, 1)
    nn.ModuleDict({"mlp": layer}).load_state_dict({f"mlp.{name}": value for name, value in dense.state_dict().items()})
    x = torch.randn(5, 6)
    share = layer.router(x).softmax(-1).amax(-1, keepdim=True)
    torch.testing.assert_close(layer(x), share * dense(x), rtol=0, atol=1e-6)


def test_foreign_weights_are_refused() -> None:
    with pytest.raises(RuntimeError, match="Unexpected key"):
        MixtureOfExperts(mlp(), 6, 4, 2).load_state_dict({"gate.weight": torch.zeros(1)})
