"""From the plain `parts` dictionary of a configuration to built parts, strictly.

{"encoders": [{"kind": "conv_vit", ...}], "experts": {"kind": "single"}, "tokens": {"kind": "identity"},
 "connector": {"kind": "mlp"}, "coupling": {"kind": "prefix"}}

What a part is built with and what it must then have is its socket's contract: `tessera.models.views` (of pixels, which may be
missing), `tessera.models.contracts` and `tessera.models.coupling`. A coupling that sees towers has no experts, tokens and
connector in front of it; one that sees pixels has no encoders either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tessera import registry
from tessera.config import build, to_dict
from tessera.errors import UserError, unknown

if TYPE_CHECKING:
    from tessera.models.contracts import Encoder
    from tessera.models.coupling import Coupling, Sees

# Key in the configuration -> socket of the registry. `encoders` holds a list, the others one part; `pixels` may be missing.
SOCKETS = {
    "pixels": "pixels",
    "encoders": "encoders",
    "experts": "experts",
    "tokens": "tokens",
    "connector": "connectors",
    "coupling": "couplings",
}
_ELSEWHERE: Mapping[registry.Use, str] = {
    "plugged": "plugs into a finished model, tessera.plug(model, {!r})",
    "around": "cuts a picture for a model that takes several",
    "called": "derives from no contract of its socket",
}


def buildable(socket: str) -> list[str]:
    """Names of the parts of a socket that composed models are built from; imports all of them."""
    return [name for name in registry.names(socket) if "built" in registry.get(socket, name).uses]


def parse(socket: str, spec: Any, where: str) -> tuple[Any, Any]:
    """The registered target and its parsed `Config` for one `{"kind": name, ...}`. Raises `UserError` naming the path."""
    if not isinstance(spec, Mapping):
        raise UserError(f'{where}: a part is a dictionary such as {{"kind": "mlp"}}, not {spec!r}.')
    values = dict(spec)
    kind = values.pop("kind", None)
    if not isinstance(kind, str):
        raise UserError(f"{where}.kind names the part and must be text, not {kind!r}. Parts: {', '.join(buildable(socket))}.")
    part = registry.get(socket, kind)
    if "built" not in part.uses:
        raise UserError(
            f"{where}.kind: {kind!r} {_ELSEWHERE[next(iter(part.uses), 'called')].format(kind)}; a composed model is not built "
            f"from it. Parts: {', '.join(buildable(socket))}."
        )
    target = part.target
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
    coupling = normalise_one("couplings", parts.get("coupling", {"kind": "prefix"}), "parts.coupling")
    if (seen := sees(coupling, "parts.coupling")) != "tokens":
        return _without(parts, coupling, seen)
    encoders = parts.get("encoders", [{"kind": "conv_vit"}])
    if not isinstance(encoders, (list, tuple)) or not encoders:
        raise UserError(f"parts.encoders must be a list of at least one encoder, not {encoders!r}.")
    plain = {"kind": "single"} if len(encoders) == 1 else {"kind": "channel_concat"}
    pixels = {"pixels": normalise_one("pixels", parts["pixels"], "parts.pixels")} if parts.get("pixels") is not None else {}
    return pixels | {
        "encoders": [normalise_one("encoders", spec, f"parts.encoders.{i}") for i, spec in enumerate(encoders)],
        "experts": normalise_one("experts", parts.get("experts", plain), "parts.experts"),
        "tokens": normalise_one("tokens", parts.get("tokens", {"kind": "identity"}), "parts.tokens"),
        "connector": normalise_one("connectors", parts.get("connector", {"kind": "mlp"}), "parts.connector"),
        "coupling": coupling,
    }


def sees(spec: Any, where: str) -> Sees:
    """What the coupling of this spec stands in front of: "tokens", "towers" or "pixels"; see `tessera.models.coupling`."""
    coupling: type[Coupling] = parse("couplings", spec, where)[0]
    return coupling.sees


def _without(parts: Mapping[str, Any], coupling: dict[str, Any], seen: str) -> dict[str, Any]:
    """`normalise` for a coupling that sees towers or pixels."""
    encoders = parts.get("encoders", [{"kind": "conv_vit"}] if seen == "towers" else [])
    unused = [key for key in ("pixels", "experts", "tokens", "connector") if parts.get(key) is not None]
    if seen == "pixels" and encoders:
        unused.insert(0, "encoders")
    if unused:
        raise UserError(
            f"parts.{unused[0]}: coupling {coupling['kind']!r} reads {'the towers' if seen == 'towers' else 'pixels'} itself, so "
            f"nothing stands between them and it: leave {' and '.join(unused)} out."
        )
    if not isinstance(encoders, (list, tuple)) or (seen == "towers" and not encoders):
        raise UserError(f"parts.encoders must be a list of at least one encoder, not {encoders!r}.")
    return {
        "encoders": [normalise_one("encoders", spec, f"parts.encoders.{i}") for i, spec in enumerate(encoders)],
        "coupling": coupling,
    }


def levels(encoders: Sequence[Encoder], kind: str) -> list[int]:
    """How many layers each encoder shows. Raises `UserError` for one that shows its last only, which `kind` cannot take."""
    for index, encoder in enumerate(encoders):
        if not encoder.level_count:
            raise UserError(
                f"experts {kind!r} reads several layers of every encoder; encoder {index} ({type(encoder).__name__}) shows its "
                "last one only (its `level_count` is 0)."
            )
    return [encoder.level_count for encoder in encoders]


def create(socket: str, spec: Any, where: str, **context: Any) -> Any:
    """Builds one part; `context` is what its socket hands to every part (widths, grids, backend)."""
    target, parsed = parse(socket, spec, where)
    return target(parsed, **context)
