"""From the plain `parts` dictionary of a configuration to built parts, strictly.

{"encoders": [{"kind": "conv_vit", ...}], "experts": {"kind": "single"}, "tokens": {"kind": "identity"},
 "connector": {"kind": "mlp"}, "coupling": {"kind": "prefix"}}

What a part's constructor gets after its `Config`, by socket (keyword arguments), and what it must then have:

pixels      nothing; may be missing                                     -> see `tessera.models.views`
encoders    backend (a config that knows the attention implementation)  -> image_size, width, grid, level_count, levels
experts     widths, grids (of all encoders)                             -> width, grid
tokens      width, grid                                                 -> width, grid or None, token_count
connectors  width, out_width                                            -> out_width, token_count if it changes their number
couplings   width, language_model, encoders, backend                    -> see `tessera.models.coupling`

A coupling that sees towers has no experts, tokens and connector in front of it; one that sees pixels has no encoders either.

`levels(pixels)` of an encoder gives the outputs of `level_count` of its layers, alike in shape, the last being what its `forward`
gives; an encoder may do without. Experts that set `wants` get more, when they are built and at every call:

"levels"    levels (how many each encoder has)       -> every set of visual tokens holds its `levels`
"question"  text_width (of the language model)       -> forward(sets, question): a `tessera.nn.tokens.QuestionText`, or None

A connector whose `wants` holds "question" is called as forward(tokens, question); the text is as wide as its `out_width`. Visual
tokens are then others for every question, so a packed row should hold a single one (`questions.most=1`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tessera import registry
from tessera.config import build, to_dict
from tessera.errors import UserError, unknown

# Key in the configuration -> socket of the registry. `encoders` holds a list, the others one part; `pixels` may be missing.
SOCKETS = {
    "pixels": "pixels",
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
    targets = {name: registry.get(socket, name).target for name in registry.names(socket)}
    return [name for name, target in targets.items() if not plugs_into_hosts(target) and _surrounds(socket, target)]


def _surrounds(socket: str, target: Any) -> bool:
    """Whether a part of `pixels` stands around encoders (others cut pictures for models that take several); of others True."""
    from tessera.models.views import EncoderViews

    return socket != "pixels" or (isinstance(target, type) and issubclass(target, EncoderViews))


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
    if not _surrounds(socket, target):
        raise UserError(
            f"{where}.kind: {kind!r} cuts a picture for a model that takes several; a composed model is not built from it. "
            f"Parts: {', '.join(buildable(socket))}."
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


def sees(spec: Any, where: str) -> str:
    """What the coupling of this spec stands in front of: "tokens", "towers" or "pixels"; see `tessera.models.coupling`."""
    return str(getattr(parse("couplings", spec, where)[0], "sees", "tokens"))


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


def wants(spec: Any, where: str) -> tuple[str, ...]:
    """What an experts part asks for besides the encoders' features: of "levels" and "question"."""
    target, _ = parse("experts", spec, where)
    return tuple(getattr(target, "wants", ()))


def levels(encoders: Sequence[Any], kind: str) -> list[int]:
    """How many layers each encoder shows. Raises `UserError` for one that shows its last only, which `kind` cannot take."""
    for index, encoder in enumerate(encoders):
        if not callable(getattr(encoder, "levels", None)):
            raise UserError(
                f"experts {kind!r} reads several layers of every encoder; encoder {index} ({type(encoder).__name__}) shows its "
                "last one only (it has no `levels`)."
            )
    return [int(encoder.level_count) for encoder in encoders]


def create(socket: str, spec: Any, where: str, **context: Any) -> Any:
    """Builds one part; `context` is what its socket hands to every part (widths, grids, backend)."""
    target, parsed = parse(socket, spec, where)
    return target(parsed, **context)
