"""Runs claims and keeps what they measured.

Every finished claim is kept at once, in a file beside the evidence, so that an interrupted run goes on where it stopped; the
evidence itself is replaced when all claims of its part have run.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tessera import registry
from tessera.errors import UserError
from tessera.evaluation import provenance
from tessera.io import write_json
from tessera.lab import evidence as files
from tessera.lab.claim import Claim, Finding, Kind, Numbers, claims_of
from tessera.lab.evidence import Entry, Evidence
from tessera.lab.lab import Lab

OnClaim = Callable[[registry.Part, Claim, Entry | None], None]
"""Called with None when a claim begins, and with its entry when it has ended."""


@dataclass(frozen=True, slots=True)
class Verified:
    """What a run gave for one part; `written` is where, None if only some kinds of claims were run."""

    part: registry.Part
    evidence: Evidence
    written: Path | None


def verify(
    part: registry.Part,
    lab: Lab,
    *,
    kinds: Sequence[Kind] = (),
    on_claim: OnClaim | None = None,
) -> Verified:
    """Runs the part's claims: all, or those of `kinds`, whose results are then not written, since the rest would be missing.

    A claim that raises is recorded as crashed, with the error's last line, and the others still run.
    """
    claims = [c for c in claims_of(part) if not kinds or c.kind in kinds]
    kept = {} if kinds else _kept(part, lab)
    entries: list[Entry] = []
    for claim in claims:
        if claim.id in kept:
            entries.append(kept[claim.id])
            continue
        if on_claim is not None:
            on_claim(part, claim, None)
        entry = run(claim, lab)
        entries.append(entry)
        if not kinds:
            write_json(_unfinished(part), asdict(_evidence(part, entries, lab)))
        if on_claim is not None:
            on_claim(part, claim, entry)
    found = _evidence(part, entries, lab)
    if kinds or not claims:
        return Verified(part, found, None)
    path = files.write(found, files.part_path(part))
    _unfinished(part).unlink(missing_ok=True)
    return Verified(part, found, path)


def run(claim: Claim, lab: Lab) -> Entry:
    """One claim's result; a crash is one too. `seconds` is what it costs where nothing is kept on disk yet."""
    begin, saved = time.perf_counter(), lab.saved
    try:
        finding = claim.run(lab)
        verdict = str(finding.verdict)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        finding, verdict = Finding(checks={}, note=" ".join(reason.split())), "crashed"
    return Entry(
        id=claim.id,
        kind=claim.kind,
        title=claim.title,
        paper=claim.paper,
        verdict=verdict,
        checks=dict(finding.checks),
        measured=_rounded(finding.measured),
        baseline=_rounded(finding.baseline),
        control=_rounded(finding.control),
        spread=_rounded(finding.spread),
        seeds=list(finding.seeds),
        seconds=round(time.perf_counter() - begin + lab.saved - saved, 2),
        shape=finding.shape,
        note=finding.note,
    )


def _evidence(part: registry.Part, entries: Sequence[Entry], lab: Lab) -> Evidence:
    return Evidence(
        part=part.name,
        socket=part.socket,
        catalog=part.catalog,
        claims=list(entries),
        hashes=files.hashes(part, sorted(lab.used)),
        versions=provenance.versions(),
        machine=provenance.machine(),
    )


def _unfinished(part: registry.Part) -> Path:
    path = files.path_of(part)
    return path.with_name(f".{path.stem}.unfinished.json")


def _kept(part: registry.Part, lab: Lab) -> dict[str, Entry]:
    """Claims that an interrupted run of the same code has finished."""
    path = _unfinished(part)
    if not path.is_file():
        return {}
    try:
        found = files.parse(path)
    except UserError:  # torn by whatever ended that run: everything is measured again
        return {}
    models = [name.removeprefix("models/") for name in found.hashes if name.startswith("models/")]
    if found.hashes != files.hashes(part, models):
        return {}
    lab.used.update(models)
    return {entry.id: entry for entry in found.claims if entry.verdict != "crashed"}


def _rounded(numbers: Numbers) -> dict[str, float]:
    return {name: float(f"{float(value):.6g}") for name, value in numbers.items()}
