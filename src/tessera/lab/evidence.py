"""The file that a part's claims leave: what was measured, on what, and whether it is still about the present code.

    src/tessera/evidence/<socket>/<name>.json

Evidence is stale when the part's source, the lab's, the world's or a used reference model's hash is no longer the one that was
measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tessera import registry
from tessera.errors import UserError
from tessera.io import write_json
from tessera.lab.claim import KINDS, VERDICTS, claims_of, part_module

Status: TypeAlias = Literal["no evidence", "fresh", "stale"]
FORMAT = 1
_MEASURING = (
    "lab/claim.py", "lab/lab.py", "evaluation/harness.py", "evaluation/items.py", "evaluation/scoring.py",
    "evaluation/answering.py", "evaluation/intervals.py",
)  # fmt: skip
"""What all numbers depend on, besides what claims import from the lab; how numbers are shown or stored is no part of it."""
_LAB_MODULE = re.compile(r"\btessera\.lab(\.instruments)?(?:\.| import )(\w+)")
PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One claim's result; fields as in `tessera.lab.claim.Finding`, `seconds` is what it cost."""

    id: str
    kind: str
    title: str
    verdict: str
    checks: dict[str, bool] = field(default_factory=dict)
    measured: dict[str, float] = field(default_factory=dict)
    baseline: dict[str, float] = field(default_factory=dict)
    control: dict[str, float] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    spread: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    shape: str = ""
    paper: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """A part's results and what they belong to.

    hashes: "part", "lab", "world" and one per used reference model ("models/nano").
    """

    part: str
    socket: str
    catalog: int | None
    claims: list[Entry]
    hashes: dict[str, str]
    versions: dict[str, str]
    machine: str
    format: int = FORMAT

    def counts(self) -> dict[str, int]:
        """How many claims have which verdict; verdicts that none has are left out."""
        found = [entry.verdict for entry in self.claims]
        return {verdict: found.count(verdict) for verdict in VERDICTS if verdict in found}


def folder(source: Path | None = None) -> Path:
    """Where evidence goes: beside our source in a checkout; else, as that of third parties' parts (`source`: a part's file or
    folder), to the user's data folder."""
    ours = source is None or source.resolve().is_relative_to(PACKAGE)
    if ours and (PACKAGE.parent.parent / "pyproject.toml").is_file() and os.access(PACKAGE, os.W_OK):
        return PACKAGE / "evidence"
    home = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(home).expanduser() / "tessera" / "evidence"


def path_of(part: registry.Part, source: Path | None = None) -> Path:
    """Where the part's evidence is, or would be, written. `source`: its file or folder, if known; else the part is imported."""
    return folder(source or part_path(part)) / part.socket / f"{part.name}.json"


def write(evidence: Evidence, source: Path) -> Path:
    """Writes the evidence of the part with this file or folder, whole or not at all."""
    path = folder(source) / evidence.socket / f"{evidence.part}.json"
    write_json(path, asdict(evidence))
    return path


def read(part: registry.Part, source: Path | None = None) -> Evidence | None:
    """The part's evidence: the user's own if there is any, else what was shipped; None if nobody has run its claims. `source` as
    for `path_of`. Raises `UserError` for a file that is damaged.
    """
    for path in dict.fromkeys((path_of(part, source), PACKAGE / "evidence" / part.socket / f"{part.name}.json")):
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
        entries = [Entry(**entry) for entry in plain["claims"]]
        found = Evidence(**{**plain, "claims": entries})
    except (KeyError, TypeError) as error:
        raise UserError(f"the evidence in {path} is damaged ({error}); {again}") from error
    for entry in found.claims:
        if entry.kind not in KINDS or entry.verdict not in VERDICTS:
            raise UserError(f"the evidence in {path} is damaged (claim {entry.id!r}: {entry.kind!r}, {entry.verdict!r}); {again}")
    return found


def status(part: registry.Part, evidence: Evidence | None) -> Status:
    """Whether the evidence is about the present code: its hashes, and one result for every claim of the part."""
    if evidence is None:
        return "no evidence"
    known = {c.id for c in claims_of(part)}
    if known != {entry.id for entry in evidence.claims}:
        return "stale"
    return "fresh" if all(now(part, name) == value for name, value in evidence.hashes.items()) else "stale"


def hashes(part: registry.Part, models: Sequence[str] = ()) -> dict[str, str]:
    """What a run of the part's claims belongs to, the named reference models included."""
    names = ["part", "lab", "world", *(f"models/{name}" for name in sorted(models))]
    return {name: found for name in names if (found := now(part, name)) is not None}


def now(part: registry.Part, name: str) -> str | None:
    """The present hash that a name in `Evidence.hashes` stands for; None if there is nothing of that name."""
    if name == "part":
        return part_hash(part)
    if name == "lab":
        return lab_hash(part_path(part))
    if name == "world":
        return source_hash(PACKAGE / "world")
    folder, _, model = name.partition("/")
    return source_hash(PACKAGE / "models" / "weights" / model) if folder == "models" else None


def part_path(part: registry.Part) -> Path:
    """The part's file, or its folder."""
    source = Path(str(part_module(part).__file__))
    return source.parent if source.name == "__init__.py" else source


def part_hash(part: registry.Part) -> str:
    """16 hexadecimal digits of the part's file, or of its folder."""
    return source_hash(part_path(part)) or ""


def lab_hash(path: Path) -> str | None:
    """16 hexadecimal digits of what the claims in a part's file or folder measure with: the lab's core, and the lab's modules
    that are named there or in one of those."""
    found: dict[str, Path] = {}
    waiting = [path] if path.is_file() else sorted(path.rglob("*.py"))
    while waiting:
        for inner, name in _LAB_MODULE.findall(waiting.pop().read_text(encoding="utf-8")):
            module = PACKAGE / "lab" / inner.removeprefix(".") / f"{name}.py"
            if name not in found and module.is_file():
                found[name] = module
                waiting.append(module)
    own = sorted(file for name, file in found.items() if name not in ("evidence", "claim", "lab"))
    return source_hash(*(PACKAGE / file for file in _MEASURING), *own)


@cache
def source_hash(*paths: Path, only: tuple[str, ...] = ("*.py", "*.json", "*.webp", "*.ttf", "*.safetensors")) -> str | None:
    """16 hexadecimal digits of files, or of all files below folders; None if there are none. Line ends do not count."""
    digest, seen = hashlib.sha256(), False
    for path in paths:
        files = [path] if path.is_file() else sorted(f for pattern in only for f in path.rglob(pattern))
        for file in files:
            if "__pycache__" in file.parts or file.name == "evaluation.json":
                continue
            seen = True
            data = file.read_bytes()
            if file.suffix in (".py", ".json"):
                data = data.replace(b"\r\n", b"\n")
            digest.update(file.name.encode() + b"\x1f" + hashlib.sha256(data).digest())
    return digest.hexdigest()[:16] if seen else None


def summary(found: Mapping[registry.Part, Evidence | None]) -> dict[str, Any]:
    """How many parts have which status, and how many claims which verdict."""
    claims: dict[str, int] = {}
    states: dict[str, int] = {}
    for part, evidence in found.items():
        state = status(part, evidence)
        states[state] = states.get(state, 0) + 1
        for verdict, count in (evidence.counts() if evidence is not None else {}).items():
            claims[verdict] = claims.get(verdict, 0) + count
    return {"parts": states, "claims": claims}
