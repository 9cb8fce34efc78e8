"""Our loop with parts plugged into the host: `generate` with the same parts gives the same tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tessera.generation.loop import decode_inputs
from tessera.generation.prefixes import full_prompt
from tessera.generation.route import Route
from tessera.hosts import zoo
from tessera.hosts.part import HostPart
from tessera.hosts.plug import attach, part_named

NEW = 8
PARTS = ("uniform", "pyramiddrop", "llava_align", "attention_fix")


def plugged(name: str, model: Any) -> HostPart:
    """A part at work, not at rest."""
    layers = attach(model).layer_count
    target = type(part_named(name))
    return part_named(name, target.example(layers))


def first_logits(route: Route, inputs: dict[str, Any]) -> torch.Tensor:
    """[B, V], of the token behind the prompt, before any processor."""
    with torch.inference_mode():
        _, steps = full_prompt(route.model, route, inputs, max_new_tokens=1, do_sample=False)
    return steps.logits


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "qwen3_vl", "gemma3"])
@pytest.mark.parametrize("name", PARTS)
def test_a_plugged_host_gives_generates_tokens(family: str, name: str) -> None:
    host = zoo.tiny(family)
    inputs = host.inputs((2, 1))
    route = Route(host.model)
    bare = decode_inputs(host.model, inputs, max_new_tokens=NEW, route=route)
    logits = first_logits(route, inputs)
    with attach(host.model).plug(plugged(name, host.model)):
        wanted = host.model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        found = decode_inputs(host.model, inputs, max_new_tokens=NEW, route=route)
        assert torch.equal(found, wanted)
        assert route.way()[0] != "own"
        # A gentle part may leave the likeliest tokens of a random model as they are.
        assert not torch.equal(first_logits(route, inputs), logits) or not torch.equal(wanted, bare)
    again = decode_inputs(host.model, inputs, max_new_tokens=NEW, route=route)
    assert torch.equal(again, bare)
