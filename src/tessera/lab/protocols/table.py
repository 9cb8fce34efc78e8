"""All protocols by name: every subclass in the files of this folder, and third parties', found by entry points.

A third party's protocols stand in the modules that its entry points of group `tessera.protocols` name (`retrieval =
"their_package.protocols"`); every subclass defined there is found.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import pkgutil
import sys
from collections.abc import Iterator
from functools import cache
from typing import Any

from tessera.errors import TesseraError
from tessera.lab import protocols as package
from tessera.lab.protocols.base import CostProtocol, Protocol

GROUP = "tessera.protocols"


def protocols() -> dict[str, Any]:
    """Name -> class. Raises `TesseraError` for a name that two have."""
    return _protocols(tuple(sys.path))


@cache
def _protocols(path: tuple[str, ...]) -> dict[str, Any]:
    """With those of all packages on `path`, which is `sys.path`: a new folder on it is scanned by itself."""
    found: dict[str, Any] = {}
    for module in _modules():
        loaded = importlib.import_module(module)
        for value in vars(loaded).values():
            ours = isinstance(value, type) and issubclass(value, (Protocol, CostProtocol)) and value.__module__ == loaded.__name__
            named = ours and isinstance(getattr(value, "name", None), str)
            if named and found.setdefault(value.name, value) is not value:
                raise TesseraError(f"two protocols are called {value.name!r}: {found[value.name]} and {value}.")
    return found


def _modules() -> Iterator[str]:
    for module in pkgutil.iter_modules(package.__path__):
        yield f"{package.__name__}.{module.name}"
    for entry in importlib.metadata.entry_points(group=GROUP):
        yield entry.value
