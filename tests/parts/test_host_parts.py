"""Contracts that every built-in part of hosts keeps, taken from the registry."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

import pytest
import torch

from tessera import registry
from tessera.config import build, field_types
from tessera.errors import UserError
from tessera.hosts.architecture import CAPABILITIES
from tessera.hosts.part import HostPart
from tessera.hosts.plug import plug
from tessera.hosts.tiny_configs import LAYERS
from tessera.hosts.zoo import Tiny, tiny
from tessera.models.parts import plugs_into_hosts

PARTS = [
    (socket, name)
    for socket in registry.SOCKETS
    for name in registry.names(socket)
    if plugs_into_hosts(registry.get(socket, name).target)
]
CLAIMS = {"visual tokens", "positions", "logits", "pixels"}


@pytest.fixture(scope="module")
def host() -> Tiny:
    return tiny("llava_next")


def target(socket: str, name: str) -> type[HostPart]:
    found: type[HostPart] = registry.get(socket, name).target
    return found


@pytest.mark.contract
@pytest.mark.parametrize(("socket", "name"), PARTS)
def test_configs_refuse_unknown_keys_and_wrong_types(socket: str, name: str) -> None:
    config = target(socket, name).Config
    with pytest.raises(UserError, match="no_such_key"):
        build(config, {"no_such_key": 1})
    for field in field_types(config):
        with pytest.raises(UserError, match=field):
            build(config, {field: object()})


@pytest.mark.contract
@pytest.mark.parametrize(("socket", "name"), PARTS)
def test_every_part_has_a_page_and_says_what_it_needs(socket: str, name: str) -> None:
    part = target(socket, name)
    page = sys.modules[part.__module__].__doc__ or ""
    assert "Shapes:" in page and "Deviations:" in page
    assert part.__doc__ and part.Config.__doc__
    assert set(part.needs) <= set(CAPABILITIES)
    assert set(part.claims) <= CLAIMS
    for options in (part.identity(), part.example(LAYERS), part.example(32)):
        made = part(build(part.Config, options))
        assert made.positions in ("keep", "reindex")


@pytest.mark.contract
@pytest.mark.parametrize(("socket", "name"), PARTS)
def test_the_identity_changes_nothing_and_plugging_leaves_nothing(socket: str, name: str, host: Tiny) -> None:
    part, inputs = target(socket, name), host.inputs((1, 2))
    with torch.no_grad():
        bare = host.model(**inputs).logits
        hooks = hooked(host.model)  # transformers puts its own in at the first forward
        for options in (part.identity(), part.example(LAYERS)):
            with contextlib.suppress(UserError), plug(host.model, part(build(part.Config, options))):  # a refusal is no fault
                logits = host.model(**inputs).logits
                assert options != part.identity() or torch.equal(logits, bare)
            assert hooked(host.model) == hooks
        assert torch.equal(host.model(**inputs).logits, bare)


def hooked(model: Any) -> list[tuple[str, int, int, list[str]]]:
    """Of every module: its name, forward hooks, pre-hooks and what was set on the object itself."""
    found = []
    for name, module in model.named_modules():
        own = sorted(key for key in module.__dict__ if not key.startswith("_") or key.startswith("_tessera"))
        found.append((name, len(module._forward_hooks), len(module._forward_pre_hooks), own))
    return found
