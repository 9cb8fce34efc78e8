"""Arms: what each side of an experiment is given, as plain data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tessera.errors import TesseraError


@dataclass(frozen=True, slots=True)
class Arm:
    """What one side of an experiment is given. `repeats`: of an arm that draws random numbers of its own in an experiment without
    training, over how many of its seeds its outcomes are averaged."""

    def plain(self) -> dict[str, Any]:
        """The arm as plain data, which its cached outcomes are stored under."""
        return {"arm": type(self).__name__, **{f.name: plain_data(getattr(self, f.name)) for f in dataclasses.fields(self)}}

    @property
    def label(self) -> str:
        """A few words for tables and plots."""
        return type(self).__name__.lower()

    def parts(self) -> tuple[str, ...]:
        """`socket/name` (or the name alone) of the registered parts that the arm uses: the outcomes depend on what they do."""
        return ()


@dataclass(frozen=True, slots=True, init=False)
class Plug(Arm):
    """Parts for hosts, plugged into the experiment's model: `Plug("fopru", keep=0.25)`."""

    part: str
    options: Mapping[str, Any]
    repeats: int = 1

    def __init__(self, part: str, *, repeats: int = 1, **options: Any) -> None:
        object.__setattr__(self, "part", part)
        object.__setattr__(self, "options", options)
        object.__setattr__(self, "repeats", repeats)

    @property
    def label(self) -> str:
        """`fopru keep=0.25`."""
        return " ".join([self.part, *(f"{k}={_short(v)}" for k, v in self.options.items())])

    def parts(self) -> tuple[str, ...]:
        """The plugged part."""
        return (self.part,)


@dataclass(frozen=True, slots=True, init=False)
class Use(Arm):
    """A part of the experiment's socket, by name, with options that the protocol hands to it: `Use("coop", shots=16)`."""

    part: str
    options: Mapping[str, Any]

    def __init__(self, part: str, **options: Any) -> None:
        object.__setattr__(self, "part", part)
        object.__setattr__(self, "options", options)

    @property
    def label(self) -> str:
        """`coop shots=16`."""
        return " ".join([self.part, *(f"{k}={_short(v)}" for k, v in self.options.items())])

    def parts(self) -> tuple[str, ...]:
        """The used part."""
        return (self.part,)


@dataclass(frozen=True, slots=True, init=False)
class Build(Arm):
    """A composed model with these parts in place of the protocol's own: `Build(connector={"kind": "qformer", "queries": 16})`.

    name: what the arm is called; settings: of the protocol, for this arm alone (such as `question="shuffled"`)."""

    name: str
    sockets: Mapping[str, Any]
    settings: Mapping[str, Any]

    def __init__(self, name: str, settings: Mapping[str, Any] | None = None, **sockets: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "sockets", sockets)
        object.__setattr__(self, "settings", dict(settings or {}))

    @property
    def label(self) -> str:
        """The arm's name."""
        return self.name

    def parts(self) -> tuple[str, ...]:
        """Every part that is named under "kind"."""
        return tuple(dict.fromkeys(kinds_named(self.sockets)))


@dataclass(frozen=True, slots=True, init=False)
class Vary(Arm):
    """The protocol's own way with some of its arm settings changed: `Vary("shuffled labels", labels="shuffled")`.

    uses: names of registered parts that the arm runs."""

    name: str
    uses: tuple[str, ...]
    settings: Mapping[str, Any]

    def __init__(self, name: str, *, uses: tuple[str, ...] = (), **settings: Any) -> None:
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "uses", uses)
        object.__setattr__(self, "settings", settings)

    @property
    def label(self) -> str:
        """The arm's name."""
        return self.name

    def parts(self) -> tuple[str, ...]:
        """What it uses, and every part that is named under "kind"."""
        return tuple(dict.fromkeys([*self.uses, *kinds_named(self.settings)]))


def plain_data(value: Any) -> Any:
    """Plain data of settings. Raises `TesseraError` for what cannot be written down, such as a function."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain_data(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain_data(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(v) for v in value]
    if isinstance(value, (set, frozenset)):
        return sorted(plain_data(v) for v in value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TesseraError(f"an experiment holds plain data; {value!r} is none.")


def kinds_named(value: Any) -> list[str]:
    """Every text that stands under a key "kind"."""
    if isinstance(value, Mapping):
        own = [value["kind"]] if isinstance(value.get("kind"), str) else []
        return own + [kind for inner in value.values() for kind in kinds_named(inner)]
    if isinstance(value, (list, tuple)):
        return [kind for inner in value for kind in kinds_named(inner)]
    return []


def _short(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
