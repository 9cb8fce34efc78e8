"""From the plain `parts` dictionary of a configuration to built parts, strictly.

{"encoders": [{"kind": "conv_vit", ...}], "experts": {"kind": "single"}, "tokens": {"kind": "identity"},
 "connector": {"kind": "mlp"}, "coupling": {"kind": "prefix"}}

What a part's constructor gets after its `Config`, by socket (keyword arguments), and what it must then have:

encoders    backend (a config that knows the attention implementation)  -> image_size, width, grid
experts     widths, grids (of all encoders)                             -> width, grid
tokens      width, grid                                                 -> width, grid or None, token_count
connectors  width, out_width                                            -> out_width
couplings   width
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tessera import registry
from tessera.config import build, to_dict
from tessera.errors import UserError, unknown

# Key in the configuration -> socket of the registry. `encoders` holds a list, the others one part.
SOCKETS = {
    "encoders": "encoders",
    "experts": "experts",
    "tokens": "tokens",
    "connector": "connectors",
    "coupling": "couplings",
}


def plugs_into_hosts(target: Any) -> bool:
    """Whether a registered target is a part of hosts (`tessera.plug`) rather than a module of composed models."""
    from tessera.hosts.part import HostPart

    return isinstance(target, type) and issubclass(target, HostPart)


def buildable(socket: str) -> list[str]:
    """Names of the parts of a socket that composed models are built from; imports all of them."""
    return [name for name in registry.names(socket) if not plugs_into_hosts(registry.get(socket, name).target)]


def parse(socket: str, spec: Any, where: str) -> tuple[Any, Any]:
    """The registered target and its parsed `Config` for one `{"kind":

    name, ...}`. Raises `UserError` naming the path.
    """
    if not isinstance(spec, Mapping):
        raise UserError(f'{where}: a part is a dictionary such as {{"kind": "mlp"}}, not {spec!r}.')
    values = dict(spec)
    kind = values.pop("kind", None)
    if not isinstance(kind, str):
        raise UserError(f"{where}.kind names the part and must be text, not {kind!r}. Parts: {', '.join(buildable(socket))}.")
    target = registry.get(socket, kind).target
    if plugs_into_hosts(target):
        raise UserError(
            f"{where}.kind: {kind!r} plugs into a finished model, tessera.plug(model, {kind!r}); a composed model is not built "
            f"from it. Parts: {', '.join(buildable(socket))}."
        )
    return target, build(target.Config, values, where)


def normalise_one(socket: str, spec: Any, where: str) -> dict[str, Any]:
    """The spec with every default written out."""
    _, parsed = parse(socket, spec, where)
    return {"kind": spec["kind"], **to_dict(parsed)}


def normalise(parts: Any) -> dict[str, Any]:
    """Checks a `parts` dictionary and writes every default out, so that a saved configuration never
    changes its meaning."""
    if not isinstance(parts, Mapping):
        raise UserError(f"parts must be a dictionary of sockets ({', '.join(SOCKETS)}), not {parts!r}.")
    for key in parts:
        if key not in SOCKETS:
            raise unknown("socket in parts:", str(key), SOCKETS)
    encoders = parts.get("encoders", [{"kind": "conv_vit"}])
    if not isinstance(encoders, (list, tuple)) or not encoders:
        raise UserError(f"parts.encoders must be a list of at least one encoder, not {encoders!r}.")
    plain = {"kind": "single"} if len(encoders) == 1 else {"kind": "channel_concat"}
    return {
        "encoders": [normalise_one("encoders", spec, f"parts.encoders.{i}") for i, spec in enumerate(encoders)],
        "experts": normalise_one("experts", parts.get("experts", plain), "parts.experts"),
        "tokens": normalise_one("tokens", parts.get("tokens", {"kind": "identity"}), "parts.tokens"),
        "connector": normalise_one("connectors", parts.get("connector", {"kind": "mlp"}), "parts.connector"),
        "coupling": normalise_one("couplings", parts.get("coupling", {"kind": "prefix"}), "parts.coupling"),
    }


def create(socket: str, spec: Any, where: str, **context: Any) -> Any:
    """Builds one part; `context` is what its socket hands to every part (widths, grids, backend)."""
    target, parsed = parse(socket, spec, where)
    return target(parsed, **context)
