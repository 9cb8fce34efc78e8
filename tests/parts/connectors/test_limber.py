from __future__ import annotations

import pytest
import torch

from tessera.config import build
from tessera.errors import UserError
from tessera.lab.composed import tiny
from tessera.nn.tokens import from_grid
from tessera.parts.connectors.limber import TRAINED, Limber
from tessera.training.plan import Stage, multipliers


def test_it_is_one_linear_layer_whose_output_drops_out_in_training_only() -> None:
    part = Limber(build(Limber.Config, {"dropout": 0.5}), 8, 6)
    tokens = from_grid(torch.randn(2, 12, 8), (3, 4), source=0)
    wanted = torch.einsum("bnd,ed->bne", tokens.features, part.project.weight) + part.project.bias
    found = part.eval()(tokens)
    torch.testing.assert_close(found.features, wanted)
    assert found.grid == (3, 4) and part.out_width == 6
    dropped = part.train()(tokens).features
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], 2 * wanted[kept])
    assert 0.2 < kept.float().mean() < 0.8
    assert sum(p.numel() for p in part.parameters()) == 8 * 6 + 6


def test_its_plan_trains_the_map_alone() -> None:
    found = multipliers(Stage(train=dict(TRAINED)), tiny({"kind": "prefix"}, connector={"kind": "limber"}).sockets())
    assert {name for name, rate in found.items() if rate} == {"connector"}


def test_a_chance_of_one_is_refused() -> None:
    for value in (1.0, -0.1):
        with pytest.raises(UserError, match="dropout is a chance"):
            build(Limber.Config, {"dropout": value})
