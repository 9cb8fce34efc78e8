"""All protocols by name: every subclass in the files of this folder."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from typing import Any

from tessera.errors import TesseraError
from tessera.lab import protocols as package
from tessera.lab.protocols.base import CostProtocol, Protocol


@cache
def protocols() -> dict[str, Any]:
    """Name -> class. Raises `TesseraError` for a name that two have."""
    found: dict[str, Any] = {}
    for module in pkgutil.iter_modules(package.__path__):
        loaded = importlib.import_module(f"{package.__name__}.{module.name}")
        for value in vars(loaded).values():
            ours = isinstance(value, type) and issubclass(value, (Protocol, CostProtocol)) and value.__module__ == loaded.__name__
            if ours and isinstance(getattr(value, "name", None), str):
                if value.name in found:
                    raise TesseraError(f"two protocols are called {value.name!r}: {found[value.name]} and {value}.")
                found[value.name] = value
    return found
