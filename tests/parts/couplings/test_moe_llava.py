"""MoE-LLaVA: upcycling, where experts stand, what a stage trains, refusals."""

from __future__ import annotations

import copy

import pytest
import torch

from tessera.errors import UserError
from tessera.lab.composed import pictures, prefix, tiny
from tessera.parts.couplings.moe_llava import PLACES
from tessera.training.stages import factors, sockets_of


def test_places() -> None:
    found = {name: list(places(4)) for name, places in PLACES.items()}
    assert found == {"sparse": [0, 2], "dense": [0, 1, 2, 3], "first_half": [0, 1], "second_half": [2, 3]}


def test_the_third_stage_trains_the_experts_and_routers_alone() -> None:
    model = tiny({"kind": "moe_llava"})
    sockets = sockets_of(model)
    plan = {name: float(name == "coupling") for name in sockets}
    trained = factors(sockets, plan, {id(p) for p in model.parameters()})
    names = {name for name, p in model.named_parameters() if id(p) in trained}
    assert names and all(".mlp.experts." in name or ".mlp.router." in name for name in names)
    assert len(names) == 2 * (4 * 3 + 1)


def test_a_shuffled_router_asks_other_experts() -> None:
    model = tiny({"kind": "moe_llava"})
    with torch.no_grad():
        for layer in model.model.coupling.layers:
            for index, expert in enumerate(layer.experts):
                expert.down_proj.weight.mul_(index)
    ids = torch.tensor([[*prefix(model, 1), 6, 20]])
    before = model(ids, pictures(1)).logits
    astray = copy.deepcopy(model)
    for layer in astray.model.coupling.layers:
        layer.router.weight.data = layer.router.weight.data.roll(1, 0)
    assert not torch.equal(astray(ids, pictures(1)).logits, before)
    assert torch.equal(model(ids, pictures(1)).logits, before)


def test_nonsense_is_refused() -> None:
    for changes, message in (
        ({"per_token": 5}, "from 1 to 4, not 5"),
        ({"capacity": 0.0}, "capacity must be positive"),
        ({"balance": -1.0}, "balance cannot be negative"),
        ({"places": "odd"}, "places"),
    ):
        with pytest.raises(UserError, match=message):
            tiny({"kind": "moe_llava", **changes})
