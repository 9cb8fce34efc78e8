"""The registry of parts: one registration, exact names, discovered lazily.

    @part("mlp", socket="connectors")
    class MLP(nn.Module):
        @config
        class Config: ...

The built-in parts live in `tessera.parts.<socket>.<file>`; the file's name is the part's name, so that a part is found by
importing one file. Third parties register through the entry-point group `tessera.parts`, whose entry names are
`<socket>.<name>` and whose values are modules.

What a socket holds is said by its contracts, classes that parts derive from. They are named and not imported, because the
registry loads no torch.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from tessera.errors import TesseraError, UserError, unknown

Use: TypeAlias = Literal["built", "plugged", "around", "called"]
"""How a part is used: built into one of Tessera's models by its configuration; plugged into a finished model by `tessera.plug`;
put around a model, which it asks; or called as its contract says."""


@dataclass(frozen=True, slots=True)
class Contract:
    """What a part may be: the dotted name of the class that it derives from, and how such parts are used."""

    base: str
    use: Use = "called"

    def load(self) -> type:
        """The class; imports it."""
        module, _, name = self.base.rpartition(".")
        found: type = getattr(importlib.import_module(module), name)
        return found


_PLUGGED = Contract("tessera.hosts.part.HostPart", "plugged")
_OBJECTIVE = Contract("tessera.training.objective.Objective")
CONTRACTS: Mapping[str, tuple[Contract, ...]] = {
    "pixels": (Contract("tessera.models.views.EncoderViews", "built"), Contract("tessera.hosts.pixels.Pixels", "around")),
    "encoders": (Contract("tessera.models.contracts.Encoder", "built"),),
    "experts": (Contract("tessera.models.contracts.Experts", "built"),),
    "tokens": (
        Contract("tessera.models.contracts.TokenModule", "built"),
        Contract("tessera.hosts.token_reduction.TokenReduction", "plugged"),
    ),
    "connectors": (Contract("tessera.models.contracts.Connector", "built"),),
    "couplings": (Contract("tessera.models.coupling.Coupling", "built"), _PLUGGED),
    "vlms": (),
    "grounding": (Contract("tessera.evaluation.grounding.Grounder"),),
    "contrastive": (Contract("tessera.models.contrast.Contrast", "built"),),
    "few_shot": (Contract("tessera.models.few_shot.FewShot"),),
    "retrieval": (),
    "objectives": (_OBJECTIVE,),
    "distillation": (_OBJECTIVE,),
    "tuning": (Contract("tessera.training.tuning.Tuning"), _PLUGGED),
    "preference": (_OBJECTIVE,),
    "decoding": (_PLUGGED,),
    "agents": (Contract("tessera.hosts.agent.Agent", "around"),),
    "engines": (Contract("tessera.data.engine.Engine"),),
    "datasets": (),
    "benchmarks": (Contract("tessera.evaluation.benchmark.Benchmark"),),
    "probes": (Contract("tessera.evaluation.probe.Probe"),),
    "compression": (Contract("tessera.models.compression.Compressor"), Contract("tessera.models.compression.Merger")),
    "video": (Contract("tessera.hosts.clips.ClipPart", "plugged"),),
    **dict.fromkeys(("medical", "remote_sensing", "three_d", "robotics", "brain"), ()),
    **dict.fromkeys(("time_series", "generation", "language", "other"), ()),
}
"""Socket -> what its parts may be; nothing for a socket that no part fills yet: its first part brings the contract."""
SOCKETS = tuple(CONTRACTS)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Part:
    """One registered part: its name, its socket, the object that implements it, its catalogue number if it has one."""

    name: str
    socket: str
    target: Any
    catalog: int | None = None

    @property
    def contracts(self) -> tuple[Contract, ...]:
        """Those of its socket that it keeps; none for a part that derives from none of them."""
        bases = {f"{base.__module__}.{base.__qualname__}" for base in getattr(self.target, "__mro__", ())}
        return tuple(contract for contract in CONTRACTS[self.socket] if contract.base in bases)

    @property
    def uses(self) -> frozenset[Use]:
        """How it is used; nothing for a part that keeps no contract."""
        return frozenset(contract.use for contract in self.contracts)

    @property
    def config(self) -> type | None:
        """The class of its options, None if it has none."""
        found: type | None = getattr(self.target, "Config", None)
        return found

    def identity(self) -> dict[str, Any] | None:
        """Options with which it changes nothing, bit for bit; None if it names none."""
        says: Callable[[], Mapping[str, Any]] | None = getattr(self.target, "identity", None)
        return None if says is None else dict(says())


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
