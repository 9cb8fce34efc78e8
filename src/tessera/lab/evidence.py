"""Evidence files: what a part's claims measured, with which code, and the history.

src/tessera/evidence/<socket>/<name>.json       a part's claims
src/tessera/evidence/behaviour.json             fingerprints of protocols and of the core, with versions
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tessera import registry
from tessera.errors import UserError
from tessera.lab.behaviour import Numbers
from tessera.lab.claims import part_module
from tessera.lab.experiment import KINDS, Condition
from tessera.lab.judge import VERDICTS, Estimate

FORMAT = 2
PACKAGE = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Former:
    """An earlier form of an experiment: its digest, what came of it, and why it was changed."""

    digest: str
    verdict: str
    said: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An arm as it is shown: metric -> (mean, low, high), 95 % interval."""

    name: str
    label: str
    metrics: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One claim's result.

    effect: effects with intervals, arms, units (`unit`: images or seeds), `looks` taken, preconditions.
    exact: checks and measured numbers. cost: counted numbers, `bounds` in words, timed ratios (median, low, high).
    digest: of the experiment; depends: name of a behaviour -> its version, or a model's weights; seconds: what it cost.
    """

    id: str
    kind: str
    promise: str
    verdict: str
    paper: str = ""
    metric: str = ""
    protocol: str = ""
    unit: str = ""
    units: int = 0
    looks: int = 0
    primary: Estimate | None = None
    validity: tuple[Estimate, ...] = ()
    secondary: tuple[Estimate, ...] = ()
    conditions: tuple[Condition, ...] = ()
    arms: tuple[Shown, ...] = ()
    checks: Mapping[str, bool] = field(default_factory=dict)
    measured: Mapping[str, float] = field(default_factory=dict)
    timed: Mapping[str, Sequence[float]] = field(default_factory=dict)
    shape: str = ""
    note: str = ""
    amended: tuple[str, ...] = ()
    history: tuple[Former, ...] = ()
    digest: str = ""
    depends: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    machine: str = ""

    def plain(self) -> dict[str, Any]:
        """As JSON; what is empty is left out."""
        found = asdict(self)
        return {name: value for name, value in found.items() if value not in ("", 0, 0.0, None) and value != () and value != {}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A part's results. behaviour: the part's fingerprint, and `version`, which goes up when it changes."""

    part: str
    socket: str
    catalog: int | None
    claims: tuple[Entry, ...] = ()
    behaviour: Numbers = field(default_factory=dict)
    version: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def ran(self) -> bool:
        """Whether any claim has a result: a file may hold nothing but what was found before claims took their present form."""
        return any(entry.verdict != "not run" for entry in self.claims)

    def counts(self) -> dict[str, int]:
        """How many claims have which verdict; verdicts that none has are left out."""
        found = [entry.verdict for entry in self.claims]
        return {verdict: found.count(verdict) for verdict in VERDICTS if verdict in found}

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        claims = [entry.plain() for entry in self.claims]
        return {"format": FORMAT, **{k: v for k, v in asdict(self).items() if k != "claims"}, "claims": claims}


# Files


def folder(source: Path | None = None) -> Path:
    """Where evidence goes: beside our source in a checkout; else, as that of third parties' parts (`source`: a part's file or
    folder), to the user's data folder."""
    ours = source is None or source.resolve().is_relative_to(PACKAGE)
    beside = PACKAGE / "evidence"
    writable = os.access(beside if beside.is_dir() else PACKAGE, os.W_OK)
    if ours and writable and (PACKAGE.parent.parent / "pyproject.toml").is_file():
        return beside
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "tessera" / "evidence"


def path_of(socket: str, name: str, source: Path | None = None) -> Path:
    """Where the part's evidence is, or would be, written. `source`: its file or folder, if known; else the part is imported."""
    return folder(source or part_path(socket, name)) / socket / f"{name}.json"


def part_path(socket: str, name: str) -> Path:
    """The part's file, or its folder; imports the part."""
    source = Path(str(part_module(registry.get(socket, name)).__file__))
    return source.parent if source.name == "__init__.py" else source


def read(socket: str, name: str, source: Path | None = None) -> Evidence | None:
    """The part's evidence: the user's own if there is any, else what was shipped; None if nobody has run its claims. Raises
    `UserError` for a file that is damaged."""
    for path in dict.fromkeys((path_of(socket, name, source), PACKAGE / "evidence" / socket / f"{name}.json")):
        if path.is_file():
            return parse(path)
    return None


def parse(path: Path) -> Evidence:
    """Reads an evidence file. Raises `UserError` for a damaged one."""
    again = "delete it, or write it anew with `tessera verify`."
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"the evidence in {path} cannot be read ({error}); {again}") from error
    try:
        if plain["format"] != FORMAT:
            raise UserError(f"the evidence in {path} has format {plain['format']}, this version reads {FORMAT}; {again}")
        entries = tuple(_entry(entry) for entry in plain["claims"])
        found = Evidence(**{k: v for k, v in plain.items() if k not in ("format", "claims")}, claims=entries)
        for entry in found.claims:
            if entry.kind not in KINDS or entry.verdict not in VERDICTS:
                raise ValueError(f"claim {entry.id!r}: {entry.kind!r}, {entry.verdict!r}")
            numbers: list[Any] = [entry.seconds, *entry.measured.values(), *(x for t in entry.timed.values() for x in t)]
            numbers += [x for arm in entry.arms for triple in arm.metrics.values() for x in triple]
            if not all(isinstance(number, (int, float)) for number in numbers):
                raise ValueError(f"claim {entry.id!r}: no numbers")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the evidence in {path} is damaged ({error}); {again}") from error
    return found


def _entry(plain: Mapping[str, Any]) -> Entry:
    values = dict(plain)
    if values.get("primary") is not None:
        values["primary"] = Estimate(**values["primary"])
    for name, kind in (
        ("validity", Estimate),
        ("secondary", Estimate),
        ("conditions", Condition),
        ("arms", Shown),
        ("history", Former),
    ):
        values[name] = tuple(kind(**one) for one in values.get(name, ()))
    values["amended"] = tuple(values.get("amended", ()))
    return Entry(**values)


def goldens() -> dict[str, dict[str, Any]]:
    """Name of a protocol's or the core's behaviour -> {"version": n, "numbers": {...}}, as shipped, or as the user's own runs
    found it where that is another; {} if there are none."""
    return {**goldens_in(PACKAGE / "evidence"), **goldens_in(folder())}


def goldens_in(where: Path) -> dict[str, dict[str, Any]]:
    """As `goldens`, of one folder of evidence."""
    path = where / "behaviour.json"
    if not path.is_file():
        return {}
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); write it anew with `tessera verify --all`.") from error
    return found


def rounded(value: Any) -> Any:
    """Numbers with six digits, as they are written."""
    if isinstance(value, Estimate):
        return replace(
            value, **{n: rounded(getattr(value, n)) for n in ("value", "low", "high", "margin", "level", "detectable")}
        )
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, (list, tuple)):
        return tuple(rounded(v) for v in value)
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    return value
