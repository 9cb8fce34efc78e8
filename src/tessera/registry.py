"""The registry of parts: one registration, exact names, discovered lazily.

    @part("mlp", socket="connectors")
    class MLP(nn.Module):
        @config
        class Config: ...

The built-in parts live in `tessera.parts.<socket>.<file>`; the file's name is the part's name, so that a part is found by
importing one file. Third parties register through the entry-point group `tessera.parts`, whose entry names are
`<socket>.<name>` and whose values are modules.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from tessera.errors import TesseraError, UserError, unknown

SOCKETS = (
    "pixels", "encoders", "experts", "tokens", "connectors", "couplings", "vlms", "grounding", "contrastive", "few_shot",
    "retrieval", "objectives", "distillation", "tuning", "preference", "decoding", "agents", "engines", "datasets",
    "benchmarks", "probes", "compression", "video", "medical", "remote_sensing", "three_d", "robotics", "brain",
    "time_series", "generation", "language", "other",
)  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """One registered part: its name, its socket, the object that implements it, its catalogue number if it has one."""

    name: str
    socket: str
    target: Any
    catalog: int | None = None


_registered: dict[tuple[str, str], Part] = {}


def part(name: str, *, socket: str, catalog: int | None = None) -> Callable[[T], T]:
    """Registers a class or function as part `name` of `socket`. Raises `TesseraError` for a duplicate."""
    if socket not in SOCKETS:
        raise unknown("socket", socket, SOCKETS)

    def register(target: T) -> T:
        known = _registered.get((socket, name))
        if known is not None and (known.target.__module__, known.target.__qualname__) != (
            getattr(target, "__module__", None),
            getattr(target, "__qualname__", None),
        ):
            raise TesseraError(f"part {name!r} of socket {socket!r} is registered twice: {known.target!r} and {target!r}.")
        _registered[socket, name] = Part(name, socket, target, catalog)
        return target

    return register


def names(socket: str) -> list[str]:
    """All part names of a socket, built-in and from entry points, without importing any of them."""
    if socket not in SOCKETS:
        raise unknown("socket", socket, SOCKETS)
    found = {name for (s, name) in _registered if s == socket}
    found.update(_builtin(socket))
    found.update(_entry_points(socket))
    return sorted(found)


def get(socket: str, name: str) -> Part:
    """The part `name` of `socket`; imports its file if needed. Raises `UserError` naming the nearest parts."""
    if socket not in SOCKETS:
        raise unknown("socket", socket, SOCKETS)
    if (socket, name) not in _registered:
        if name in _builtin(socket):
            importlib.import_module(f"tessera.parts.{socket}.{name}")
        elif name in (points := _entry_points(socket)):
            points[name].load()
        else:
            elsewhere = [s for s in SOCKETS if s != socket and name in _builtin(s)]
            if elsewhere:
                raise UserError(f"part {name!r} belongs to socket {elsewhere[0]!r}, not to {socket!r}.")
            raise unknown(f"part of socket {socket!r}:", name, names(socket))
    if (socket, name) not in _registered:
        raise TesseraError(f"tessera.parts.{socket}.{name} exists but registers no part of that name.")
    return _registered[socket, name]


def _builtin(socket: str) -> list[str]:
    try:
        package = importlib.import_module(f"tessera.parts.{socket}")
    except ModuleNotFoundError:
        return []
    return [m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_")]


def _entry_points(socket: str) -> dict[str, importlib.metadata.EntryPoint]:
    """Name -> entry point of a socket's parts in other packages."""
    return _scanned(tuple(sys.path)).get(socket, {})


@functools.cache
def _scanned(path: tuple[str, ...]) -> dict[str, dict[str, importlib.metadata.EntryPoint]]:
    """Socket -> name -> entry point, of all packages on `path`, which is `sys.path`: a new folder on it is scanned by itself.

    A package installed into a folder that was there before needs `_scanned.cache_clear()`, as it needs
    `importlib.invalidate_caches()`. Scanning reads the metadata of every installed package: once, not once a socket.
    """
    found: dict[str, dict[str, importlib.metadata.EntryPoint]] = {}
    for point in importlib.metadata.entry_points(group="tessera.parts"):
        socket, _, name = point.name.partition(".")
        found.setdefault(socket, {})[name] = point
    return found
