"""`--plug name:option=value,option=value`: parts for a host, as `tessera ask`, `tessera serve` and lmms-eval take them.

    --plug pyramiddrop:keep=0.5,0.25,0.125,positions=reindex --plug llava_align

A comma separates options where a name and an equals sign follow it, and values elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tessera.errors import UserError

if TYPE_CHECKING:
    from tessera.hosts.part import HostPart

_EXAMPLE = "for example --plug pyramiddrop:keep=0.5,0.25,0.125"


def parse_plugs(texts: Sequence[str] | None) -> list[HostPart]:
    """The parts that `--plug` names, in order, their options read as the types of the part's `Config`.

    Raises `UserError` for an unknown part or option, a value of the wrong type, and a part that plugs into no host.
    """
    return [parse_plug(text) for text in texts or ()]


def parse_plug(text: str) -> HostPart:
    """One part; see `parse_plugs`."""
    name, colon, rest = text.partition(":")
    name = name.strip()
    if not name or (colon and not rest.strip()):
        raise UserError(f"--plug wants the name of a part, and options behind a colon, {_EXAMPLE}; got {text!r}.")
    from tessera.hosts.plug import part_named

    assignments = [piece.strip() for piece in re.split(r",(?=\s*\w+\s*=)", rest)] if colon else []
    options = _typed(name, assignments) if assignments else {}
    return part_named(name, options)


def _typed(name: str, assignments: Sequence[str]) -> dict[str, Any]:
    """Option -> value of the type that the part's `Config` gives it; {} for what is no part of a host, which is refused later."""
    from tessera import registry
    from tessera.config import set_path

    parts = [registry.get(socket, name) for socket in registry.SOCKETS if name in registry.names(socket)]
    fitting = [part.target for part in parts if "plugged" in part.uses]
    if len(fitting) != 1:
        return {}
    # Never initialised: options without a default need not be given to read the others. `part_named` builds the real one.
    draft: Any = object.__new__(fitting[0].Config)
    options: dict[str, Any] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        key = key.strip()
        if not equals:
            raise UserError(f"--plug {name}: {assignment!r} is no option=value, {_EXAMPLE}.")
        try:
            set_path(draft, f"{key}={value.strip()}")
        except UserError as error:
            raise UserError(f"--plug {name}: {str(error).removeprefix('--set ')}") from error
        if key in options:
            raise UserError(f"--plug {name}: {key} is given twice.")
        options[key] = getattr(draft, key)
    return options
