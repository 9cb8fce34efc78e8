"""Evidence files: what a part's claims measured, with which code, the history, and whether the result is still fresh.

    src/tessera/evidence/<socket>/<name>.json       a part's claims
    src/tessera/evidence/behaviour.json             fingerprints of protocols and of the core, with versions

Evidence is stale, claim by claim, when the experiment is another one, or when something that it was measured with (the part, a
protocol, the world, the trainer, a reference model) behaves otherwise than it did. See `tessera.lab.behaviour`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tessera import registry
from tessera.errors import TesseraError, UserError
from tessera.io import write_json
from tessera.lab import behaviour
from tessera.lab.behaviour import Numbers
from tessera.lab.claims import claims_of, part_module
from tessera.lab.experiment import KINDS, Claim, Condition, Experiment
from tessera.lab.judge import VERDICTS, Estimate
from tessera.lab.lab import Lab

Status: TypeAlias = Literal["no evidence", "fresh", "stale"]
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


def update(socket: str, name: str, entries: Sequence[Entry], lab: Lab, claims: Sequence[Claim]) -> Path:
    """Puts results into the part's file, beside those of its other claims, in the order of `claims`; what is no claim any more
    goes.

    Several processes may do so at the same time.
    """
    from tessera.evaluation import provenance
    from tessera.lab.lab import locked

    path = path_of(socket, name)
    with locked(lab.cache / f"evidence.{socket}.{name}.lock"):
        try:
            before = parse(path) if path.is_file() else None
        except UserError:
            before = None
            path.replace(path.with_suffix(".damaged"))  # its histories may still be read by a person
        numbers, version = fingerprint(socket, name, lab, before)
        found = {entry.id: entry for entry in (*(before.claims if before else ()), *entries)}
        kept = tuple(found[claim.id] for claim in claims if claim.id in found)
        catalog = registry.get(socket, name).catalog
        made = Evidence(
            part=name,
            socket=socket,
            catalog=catalog,
            claims=kept,
            behaviour=numbers,
            version=version,
            versions=provenance.versions(),
        )
        write_json(path, made.plain())
    return path


# Freshness


def fingerprint(socket: str, name: str, lab: Lab, before: Evidence | None) -> tuple[Numbers, int]:
    """(the part's present behaviour, its version): one more than in `before` if it changed; the same keeps its numbers."""
    now = _whole(f"part {socket}/{name}", lab)
    if before is None or not before.behaviour:
        return now, 1
    return (now, before.version + 1) if behaviour.differences(before.behaviour, now) else (before.behaviour, before.version)


def _whole(name: str, lab: Lab) -> Numbers:
    """The present behaviour. Raises `TesseraError` where it cannot be computed: nothing is measured with what cannot be told from
    something else."""
    now = behaviour.of(name, lab)
    if "error" in now:
        raise TesseraError(f"the behaviour of {name} cannot be computed: {now['error']}")
    return now


def goldens() -> dict[str, dict[str, Any]]:
    """Name of a protocol's or the core's behaviour -> {"version": n, "numbers": {...}}, as shipped, or as the user's own runs
    found it where that is another; {} if there are none."""
    return {**_goldens(PACKAGE / "evidence"), **_goldens(folder())}


def _goldens(where: Path) -> dict[str, dict[str, Any]]:
    path = where / "behaviour.json"
    if not path.is_file():
        return {}
    try:
        found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}); write it anew with `tessera verify --all`.") from error
    return found


def record(names: Sequence[str], lab: Lab) -> None:
    """Brings the recorded behaviours of protocols and core up to date: a changed one gets its next version."""
    from tessera.lab.lab import locked

    with locked(lab.cache / "behaviour.lock"):
        known, changed = goldens(), {}
        for name in names:
            if name.partition(" ")[0] not in ("protocol", "core"):
                continue
            now, before = _whole(name, lab), known.get(name)
            if before is None or behaviour.differences(before["numbers"], now):
                changed[name] = {"version": before["version"] + 1 if before else 1, "numbers": now}
        if changed:
            write_json(folder() / "behaviour.json", dict(sorted({**_goldens(folder()), **changed}.items())))


def version_of(name: str, lab: Lab) -> str:
    """What `Entry.depends` says of a behaviour: its committed version, "changed" if it behaves otherwise, a model's weights."""
    kind, _, rest = name.partition(" ")
    if kind == "model":
        return lab.weights(rest)
    if kind == "part":
        socket, _, part = rest.partition("/")
        try:
            found = read(socket, part)
        except UserError:
            found = None
        if found is None or not found.behaviour:  # a part without claims has no file: its numbers stand with the protocols'
            return _golden_version(name, lab)
        return "changed" if behaviour.differences(found.behaviour, behaviour.of(name, lab)) else str(found.version)
    return _golden_version(name, lab)


def _golden_version(name: str, lab: Lab) -> str:
    before = goldens().get(name)
    if before is None:
        return "none"
    return "changed" if behaviour.differences(before["numbers"], behaviour.of(name, lab)) else str(before["version"])


def why_stale(socket: str, name: str, claim: Claim, entry: Entry | None, lab: Lab) -> list[str]:
    """Why a claim has to be run again, in words; empty if its result is fresh."""
    return reasons(claim, entry, behaviour.depends(socket, name, claim), lambda dependency: version_of(dependency, lab))


def reasons(claim: Claim, entry: Entry | None, depends: Iterable[str], version: Callable[[str], str]) -> list[str]:
    """As `why_stale`; `version` says what a behaviour is now, "" where that is not known."""
    if entry is None or entry.verdict == "not run":
        return ["it was never run"]
    found = [] if claim.digest() == entry.digest else ["the experiment is another one"]
    secondary = claim.secondary if isinstance(claim, Experiment) else ()
    measured = entry.primary is not None  # nothing is where a precondition does not hold
    if measured and [effect.words for effect in secondary] != [e.words for e in entry.secondary]:
        found.append("its secondary effects are others")
    if entry.verdict == "crashed":
        found.append("it crashed")
    for dependency in depends:
        was, now = entry.depends.get(dependency), version(dependency)
        if now not in ("", was):
            found.append(f"{dependency} behaves otherwise ({was} then, {now} now)")
    return found


def status(socket: str, name: str, found: Evidence | None, lab: Lab) -> tuple[Status, dict[str, list[str]]]:
    """(fresh or not, claim -> why it is stale)."""
    if found is None or not found.ran:
        return "no evidence", {}
    entries = {entry.id: entry for entry in found.claims}
    reasons = {c.id: why for c in claims_of(socket, name) if (why := why_stale(socket, name, c, entries.get(c.id), lab))}
    return ("stale" if reasons.keys() & {e.id for e in found.claims if e.verdict != "not run"} else "fresh"), reasons


def formed(claim: Claim, before: Entry | None) -> tuple[Former, ...]:
    """The history of a claim that is run now: what it was, and the form before this one if the experiment has changed.

    Raises `UserError` if it was changed after its result was seen and `amended` does not say why.
    """
    if before is None:
        return ()
    past = before.history
    if claim.kind == "exact" or before.digest == claim.digest() or not before.digest or before.verdict in ("crashed", "not run"):
        return past
    if len(claim.amended) <= len(before.amended):
        raise UserError(
            f"{claim.id!r} was changed after its result was seen ({before.verdict}): add a sentence that says why to `amended`."
        )
    effect = before.primary
    former = Former(
        digest=before.digest,
        verdict=before.verdict,
        said=f"{before.promise}{'' if effect is None else f' ({effect.words})'}",
        value=None if effect is None else effect.value - effect.margin,
        low=None if effect is None else effect.low - effect.margin,
        high=None if effect is None else effect.high - effect.margin,
        reason=claim.amended[-1],
    )
    return (*past, former)


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
