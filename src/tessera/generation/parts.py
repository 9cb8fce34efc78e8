"""What our loops know of the parts that are plugged into a model: what may be shared, and who may decode."""

from __future__ import annotations

from typing import Any

from tessera.hosts.attention_override import is_overridden
from tessera.hosts.part import HostPart, name_of
from tessera.hosts.plug import PluggedHost, plugged
from tessera.hosts.sequence import PlugSession

LAYER_HOOKS = frozenset({"tessera.hosts.layers", "tessera.hosts.positions"})
"""Where the hooks are defined that choose tokens in a prefill and re-map what later tokens are given."""


def bound_to_question(model: Any) -> str | None:
    """Why several questions cannot share one reading of their images, as far as plugged parts are concerned."""
    host = plugged(model)
    for part in () if host is None else host.parts:
        if part.reads_question:
            return f"what {name_of(part)} does to an image may depend on the question"
        if type(part).logits_processors is not HostPart.logits_processors:
            return f"{name_of(part)} edits logits, for which it may want the images"
    return None


def session_of(model: Any) -> PlugSession | None:
    """That of the parts which are plugged into a model now, None without any."""
    host = plugged(model)
    return None if host is None else host.session


def hooks_of(host: PluggedHost | None) -> frozenset[str]:
    """The modules that define the hooks of a host and its parts."""
    if host is None:
        return frozenset()
    return LAYER_HOOKS | {"tessera.hosts.inputs"} | {type(part).__module__ for part in host.parts}


def chooses_only(host: PluggedHost) -> bool:
    """Whether the parts do nothing to tokens behind the prompt, which then are computed as in the plain model."""
    acts = ("transform", "edit_positions", "logits_processors")
    quiet = all(getattr(type(part), name) is getattr(HostPart, name) for part in host.parts for name in acts)
    return quiet and not any(is_overridden(host.architecture.attention(layer)) for layer in host.layers)
