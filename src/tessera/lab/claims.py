"""Finds the claims of a part: the list CLAIMS of `tessera/claims/<socket>/<part>.py`.

A third party's claims are the list CLAIMS of the module that an entry point of group `tessera.claims` names (`"connectors.normed"
= "normed_claims"`), or of the part's own module. Claims files are data: importing one loads no torch. Beside one may stand
`<part>_behaviour.py`, which adds to the part's fingerprint, and `<part>_reference.py`; these hold no claims.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import sys
from functools import cache
from types import ModuleType
from typing import Any

from tessera import registry
from tessera.errors import TesseraError
from tessera.lab.experiment import Claim, Cost, Exact, Experiment

GROUP = "tessera.claims"


def claims_of(socket: str, name: str) -> list[Claim]:
    """The claims of a part, in order. Raises `TesseraError` for a claims file that is wrong, naming what is."""
    module = _module(socket, name)
    found: Any = getattr(module, "CLAIMS", ()) if module is not None else ()
    where = getattr(module, "__name__", "")
    if not isinstance(found, (list, tuple)) or not all(isinstance(claim, (Experiment, Exact, Cost)) for claim in found):
        raise TesseraError(f"{where}: CLAIMS must be a list of Experiment, Exact and Cost.")
    ids = [claim.id for claim in found]
    if double := sorted({i for i in ids if ids.count(i) > 1}):
        raise TesseraError(f"{where}: two claims are called {', '.join(double)}.")
    return list(found)


def about(socket: str, name: str) -> str:
    """The docstring of the claims file, "" without one."""
    module = _module(socket, name)
    return "" if module is None or not hasattr(module, "CLAIMS") else (module.__doc__ or "").strip()


def behaviour_modules(socket: str, name: str) -> list[ModuleType]:
    """Where a part's `behaviour()` may stand: its claims file, and `tessera/claims/<socket>/<part>_behaviour.py`."""
    beside = f"tessera.claims.{socket}.{name}_behaviour"
    found = [_module(socket, name), importlib.import_module(beside) if _exists(beside) else None]
    return [module for module in found if module is not None]


def part_module(part: registry.Part) -> ModuleType:
    """The module of a part: one file, or the package that the part's folder is."""
    name: str = part.target.__module__
    if name.startswith("tessera.parts."):
        name = ".".join(name.split(".")[:4])
    return importlib.import_module(name)


def _module(socket: str, name: str) -> ModuleType | None:
    ours = f"tessera.claims.{socket}.{name}"
    if _exists(ours):
        return importlib.import_module(ours)
    if _exists(f"tessera.parts.{socket}.{name}"):
        return None
    if (entry := _entry_points(tuple(sys.path)).get(f"{socket}.{name}")) is not None:
        return importlib.import_module(entry)
    return part_module(registry.get(socket, name))


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


@cache
def _entry_points(path: tuple[str, ...]) -> dict[str, str]:
    """Of all packages on `path`, which is `sys.path`: a new folder on it is scanned by itself."""
    return {entry.name: entry.value for entry in importlib.metadata.entry_points(group=GROUP)}
