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
from tessera.lab.claims import part_module
from tessera.models.parts import buildable, normalise
from tessera.nn.tokens import QuestionText, VisualTokens, from_grid

SOCKETS = ("encoders", "experts", "tokens", "connectors", "couplings")
PARTS = [(socket, name) for socket in SOCKETS for name in buildable(socket)]


def tiny_options(socket: str, name: str) -> dict[str, Any]:
    """The options with which the part's own file has it built for tests."""
    options: dict[str, Any] = getattr(part_module(registry.get(socket, name)), "TINY", {})
    return {key: value for key, value in options.items() if key != "kind"}


def created(socket: str, name: str) -> Any:
    target = registry.get(socket, name).target
    context: dict[str, dict[str, Any]] = {
        "encoders": {},
        "experts": {"widths": [8], "grids": [(4, 4)]},
        "tokens": {"width": 8, "grid": (4, 4)},
        "connectors": {"width": 8, "out_width": 12},
    }
    return target(build(target.Config, tiny_options(socket, name)), **context[socket])


@pytest.mark.contract
@pytest.mark.parametrize(("socket", "name"), PARTS)
def test_configs_refuse_unknown_keys_and_wrong_types(socket: str, name: str) -> None:
    config = registry.get(socket, name).target.Config
    plain = tiny_options(socket, name)
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
@pytest.mark.parametrize(("socket", "name"), [p for p in PARTS if p[0] != "couplings"])
def test_shapes_and_gradients(socket: str, name: str) -> None:
    part = created(socket, name)
    assert isinstance(part, nn.Module)
    features = torch.randn(2, 16, 8, requires_grad=True)
    tokens = from_grid(features, (4, 4), source=0)
    if socket == "encoders":
        out = part(torch.randn(2, 3, part.image_size, part.image_size))
        assert out.shape == (2, part.grid[0] * part.grid[1], part.width)
    else:
        question = QuestionText(embeddings=torch.randn(2, 5, 12), mask=torch.ones(2, 5, dtype=torch.bool))
        asked = (question,) if socket == "connectors" and "question" in getattr(part, "wants", ()) else ()
        result = part([tokens]) if socket == "experts" else part(tokens, *asked)
        assert isinstance(result, VisualTokens)
        width = part.out_width if socket == "connectors" else part.width
        assert result.width == width
        assert result.positions.shape == (2, result.count, 2)
        assert result.mask.shape == (2, result.count)
        if socket in ("tokens", "connectors"):
            config, rule = build(type(part).Config, tiny_options(socket, name)), getattr(type(part), "token_count", None)
            assert result.count == (16 if rule is None else rule(config, 16)), "the token-count rule is wrong"
        if socket == "tokens":
            assert part.grid is None or part.grid[0] * part.grid[1] == result.count
        out = result.features
    assert bool(out.isfinite().all())
    out.square().sum().backward()
    unused = [n for n, p in part.named_parameters() if p.grad is None]
    # A tower's layers behind the selected one, and its pooling head, are never run.
    assert not unused or name == "transformers_vision"


@pytest.mark.contract
@pytest.mark.parametrize("name", [name for socket, name in PARTS if socket == "couplings"])
def test_couplings_in_a_whole_model(name: str) -> None:
    from tessera.lab.composed import pictures, prefix, tiny

    model = tiny({"kind": name, **tiny_options("couplings", name)}).train()
    ids = torch.tensor([[*prefix(model, 1), 6, 20, 7], [*prefix(model, 1), 6, 21, 7]])
    features = model.get_image_features(pictures(2))
    assert features.shape[0] == 2 and features.shape[2] == 32
    embeddings = model.get_input_embeddings()(ids)
    assert model.model.coupling(embeddings, ids == 4, features).shape == embeddings.shape
    model(ids, pictures(2), labels=ids.masked_fill(ids == 4, -100)).loss.backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    sockets = model.sockets()
    assert "coupling" in sockets and list(sockets)[-1] == "language_model"
    assert {id(p) for m in sockets.values() for p in m.parameters()} == {id(p) for p in model.parameters()}


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
