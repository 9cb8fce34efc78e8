"""Finds the claims of a part: the list CLAIMS of `tessera/claims/<socket>/<part>.py`.

A third party's claims are the list CLAIMS of the module that an entry point of group `tessera.claims` names (`"connectors.normed"
= "normed_claims"`), or of the part's own module. Claims files are data: importing one loads no torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from functools import cache
from types import ModuleType
from typing import Any

from tessera import registry
from tessera.errors import TesseraError
from tessera.lab.second.experiment import Claim, Cost, Exact, Experiment

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
    if (entry := _entry_points().get(f"{socket}.{name}")) is not None:
        return importlib.import_module(entry)
    return part_module(registry.get(socket, name))


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


@cache
def _entry_points() -> dict[str, str]:
    return {entry.name: entry.value for entry in importlib.metadata.entry_points(group=GROUP)}
