"""Contracts that every built-in part of the composed model keeps, taken from the registry.

The sockets hold parts that plug into hosts too; their contract is in `test_host_parts.py`.
"""

from __future__ import annotations

import typing
from typing import Any

import pytest
import torch
from torch import nn

from tessera import registry
from tessera.config import build, field_types
from tessera.errors import UserError
from tessera.models.parts import buildable, normalise
from tessera.nn.tokens import VisualTokens, from_grid

SOCKETS = ("encoders", "experts", "tokens", "connectors", "couplings")
PARTS = [(socket, name) for socket in SOCKETS for name in buildable(socket)]
# Settings that a part cannot do without.
NEEDED: dict[str, dict[str, Any]] = {
    "conv_vit": {"image_size": 32, "width": 24, "heads": 2, "depth": 1},
    "transformers_vision": {
        "tower": {
            "model_type": "siglip_vision_model",
            "hidden_size": 24,
            "intermediate_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        }
    },
}


def created(socket: str, name: str) -> Any:
    target = registry.get(socket, name).target
    context: dict[str, dict[str, Any]] = {
        "encoders": {},
        "experts": {"widths": [8], "grids": [(4, 4)]},
        "tokens": {"width": 8, "grid": (4, 4)},
        "connectors": {"width": 8, "out_width": 12},
        "couplings": {"width": 12},
    }
    return target(build(target.Config, NEEDED.get(name, {})), **context[socket])


@pytest.mark.contract
@pytest.mark.parametrize(("socket", "name"), PARTS)
def test_configs_refuse_unknown_keys_and_wrong_types(socket: str, name: str) -> None:
    config = registry.get(socket, name).target.Config
    plain = NEEDED.get(name, {})
    with pytest.raises(UserError, match="no_such_key"):
        build(config, {**plain, "no_such_key": 1})
    for field, kind in field_types(config).items():
        if kind is not typing.Any:
            with pytest.raises(UserError, match=field):
                build(config, {**plain, field: object()})


@pytest.mark.contract
@pytest.mark.parametrize(("socket", "name"), PARTS)
def test_every_part_has_a_page(socket: str, name: str) -> None:
    import sys

    target = registry.get(socket, name).target
    page = sys.modules[target.__module__].__doc__ or ""
    assert "Shapes:" in page
    assert target.__doc__ and target.Config.__doc__ and target.forward.__doc__


@pytest.mark.contract
@pytest.mark.parametrize(("socket", "name"), PARTS)
def test_shapes_and_gradients(socket: str, name: str) -> None:
    part = created(socket, name)
    assert isinstance(part, nn.Module)
    features = torch.randn(2, 16, 8, requires_grad=True)
    tokens = from_grid(features, (4, 4), source=0)
    if socket == "encoders":
        out = part(torch.randn(2, 3, part.image_size, part.image_size))
        assert out.shape == (2, part.grid[0] * part.grid[1], part.width)
    elif socket == "couplings":
        embeddings = torch.zeros(2, 20, 12)
        places = torch.zeros(2, 20, dtype=torch.bool)
        places[:, 2:10] = True
        out = part(embeddings, places, torch.randn(2, 8, 12, requires_grad=True))
        assert out.shape == embeddings.shape
    else:
        result = part([tokens]) if socket == "experts" else part(tokens)
        assert isinstance(result, VisualTokens)
        width = part.out_width if socket == "connectors" else part.width
        assert result.width == width
        assert result.positions.shape == (2, result.count, 2)
        assert result.mask.shape == (2, result.count)
        if socket == "tokens":
            config = build(type(part).Config, NEEDED.get(name, {}))
            assert result.count == type(part).token_count(config, 16), "the token-count rule is wrong"
            assert part.grid is None or part.grid[0] * part.grid[1] == result.count
        out = result.features
    assert bool(out.isfinite().all())
    out.square().sum().backward()
    unused = [n for n, p in part.named_parameters() if p.grad is None]
    # A tower's layers behind the selected one, and its pooling head, are never run.
    assert not unused or name == "transformers_vision"


def test_duplicates_unknown_and_misplaced_parts_are_refused() -> None:
    with pytest.raises(UserError, match="'conv_vits'. Did you mean 'conv_vit'"):
        registry.get("encoders", "conv_vits")
    with pytest.raises(UserError, match="belongs to socket 'connectors'"):
        registry.get("encoders", "mlp")


def test_parts_of_hosts_are_no_parts_of_composed_models() -> None:
    assert "fopru" not in buildable("tokens") and "pixel_shuffle" in buildable("tokens")
    with pytest.raises(
        UserError, match=r"parts\.tokens\.kind: 'fopru' plugs into a finished model, tessera\.plug\(model, 'fopru'\)"
    ):
        normalise({"tokens": {"kind": "fopru"}})
    with pytest.raises(UserError, match=r"must be text, not None\. Parts: identity, pixel_shuffle\."):
        normalise({"tokens": {}})
