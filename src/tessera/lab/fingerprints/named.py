"""The present behaviour of what a name stands for, kept on disk as long as no file of this package changes.

Names: `part tokens/fopru`, `protocol answering`, `core world`, `model nano`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tessera import registry
from tessera.io import write_json
from tessera.lab.behaviour import Numbers
from tessera.lab.claims import part_module
from tessera.lab.protocols import table

if TYPE_CHECKING:
    from tessera.lab.lab import Lab

PACKAGE = Path(__file__).resolve().parents[2]


def of(name: str, lab: Lab, shelf: Path) -> Numbers:
    """The present behaviour; {"error": ...} where it fails.

    Kept in the folder `shelf` under the hash of all files of this package, for what stands in this package.
    """
    kept = _kept(name, shelf)
    found = None if kept is None or not kept.is_file() else _read(kept)
    if found is None:
        found = _safe(name, lab)
        if kept is not None and "error" not in found:
            write_json(kept, found)
    return found


def _kept(name: str, shelf: Path) -> Path | None:
    """Where a behaviour is kept; None for third parties' parts and protocols, whose files nobody has
    hashed."""
    kind, _, rest = name.partition(" ")
    if kind == "part":
        module = part_module(registry.get(*rest.split("/")))
        if not module.__name__.startswith("tessera.parts."):
            return None
    if kind == "protocol" and not table.protocols()[rest].__module__.startswith("tessera.lab."):
        return None
    return shelf / source_hash() / f"{name.replace(' ', '.').replace('/', '.')}.json"


@cache
def source_hash() -> str:
    """Of all files of this package but the evidence, and of torch's and transformers' versions."""
    versions = [importlib.metadata.version(name) for name in ("torch", "transformers")]
    digest = hashlib.sha256(repr(versions).encode())
    for path in sorted(PACKAGE.rglob("*")):
        inside = path.relative_to(PACKAGE).parts
        if inside[0] != "evidence" and "__pycache__" not in inside and path.is_file():
            digest.update(repr(inside).encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def _read(path: Path) -> Numbers | None:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found else None


def _safe(name: str, lab: Lab) -> Numbers:
    try:
        return _of(name, lab)
    except Exception as error:  # what cannot run behaves otherwise than what could
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}


def _of(name: str, lab: Lab) -> Numbers:
    kind, _, rest = name.partition(" ")
    if kind == "part":
        from tessera.lab.fingerprints import parts

        socket, _, part = rest.partition("/")
        return parts.of_part(registry.get(socket, part))
    if kind == "protocol":
        found: Numbers = table.protocols()[rest].golden(lab)
        return found
    if kind == "model":
        return {"weights": lab.weights(rest)}
    if kind == "core":
        return _core(rest)
    raise KeyError(name)


@cache
def _core(name: str) -> Numbers:
    """It depends on no lab: once in a process."""
    from tessera.lab.fingerprints.core import CORE

    return CORE[name]()
