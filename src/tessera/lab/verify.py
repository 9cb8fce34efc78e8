"""Runs claims and keeps their results.

Outcomes are kept as they are measured, so that an interrupted run goes on where it stopped, and every claim's result goes into
its part's evidence at once. `rejudge` judges kept outcomes again, without measuring anything.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tessera.errors import UserError
from tessera.evaluation import provenance
from tessera.io import write_json
from tessera.lab import evidence as files
from tessera.lab import freshness, judge, recording, storage
from tessera.lab.claims import claims_of
from tessera.lab.evidence import Entry, Shown, rounded
from tessera.lab.experiment import Claim, Cost, Exact, Experiment
from tessera.lab.judge import Judged
from tessera.lab.local_lab import LocalLab
from tessera.lab.outcomes import Outcomes

OUTCOMES = ("looks", "arms")
"""What a file of kept outcomes holds."""
OnClaim = Callable[[Claim, Entry | None], None]
"""Called with None when a claim begins, and with its entry when it has ended."""


def verify(socket: str, name: str, claims: Sequence[Claim], lab: LocalLab, on_claim: OnClaim | None = None) -> list[Entry]:
    """Runs claims of a part and writes each result into the part's evidence. A claim that raises has crashed; the others still
    run."""
    every = claims_of(socket, name)
    entries = []
    for claim in claims:
        if on_claim is not None:
            on_claim(claim, None)
        names = freshness.depends(socket, name, claim)
        before = _before(socket, name, claim)
        history = recording.formed(claim, before)
        recording.record(names, lab)
        entry = replace(run(socket, name, claim, lab), history=history)
        recording.update(socket, name, [entry], lab, every)
        # the part's version is known once its own file is written
        entry = replace(entry, depends={n: freshness.version_of(n, lab) for n in names})
        if isinstance(claim, Experiment):
            _stamp(_outcomes_path(socket, name, claim, lab), entry.depends)
        recording.update(socket, name, [entry], lab, every)
        entries.append(entry)
        if on_claim is not None:
            on_claim(claim, entry)
    return entries


def _before(socket: str, name: str, claim: Claim) -> Entry | None:
    try:
        found = files.read(socket, name)
    except UserError:
        return None
    return next((entry for entry in (found.claims if found else ()) if entry.id == claim.id), None)


def run(socket: str, name: str, claim: Claim, lab: LocalLab) -> Entry:
    """One claim's result; a crash is one too. `seconds` is what it costs where nothing is kept on disk yet."""
    begin, saved = time.perf_counter(), lab.saved
    try:
        entry = _exact(claim, lab) if isinstance(claim, Exact) else _other(socket, name, claim, lab)
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = f"{type(error).__name__}: {error} ({Path(where.filename).name}, line {where.lineno})"
        entry = entry_of(claim, "crashed", note=" ".join(reason.split()))
    return replace(
        entry,
        seconds=round(time.perf_counter() - begin + lab.saved - saved, 2),
        machine=provenance.machine(),
    )


def entry_of(claim: Claim, verdict: str, **more: Any) -> Entry:
    """The entry of a claim without results of its own."""
    protocol: Any = getattr(claim, "protocol", None)
    values: dict[str, Any] = {
        "id": claim.id,
        "kind": claim.kind,
        "promise": claim.promise,
        "verdict": verdict,
        "paper": claim.paper,
        "protocol": "" if protocol is None else protocol.name,
        "note": claim.note,
        "amended": claim.amended,
        "digest": claim.digest(),
    }
    return Entry(**{**values, **more})


def _exact(claim: Exact, lab: LocalLab) -> Entry:
    found = claim.run(lab)
    verdict = "holds" if found.checks and all(found.checks.values()) else "fails" if found.checks else "not applicable"
    note = " ".join(text for text in (claim.note, found.note) if text)
    return entry_of(claim, verdict, checks=dict(found.checks), measured=rounded(found.measured), shape=found.shape, note=note)


def _other(socket: str, name: str, claim: Experiment | Cost, lab: LocalLab) -> Entry:
    return _cost(claim, lab) if isinstance(claim, Cost) else _effect(socket, name, claim, lab)


def _cost(claim: Cost, lab: LocalLab) -> Entry:
    found = claim.protocol.measure(lab, claim.treatment, claim.baseline)
    checks = {f"{m} is at least {p.value:g} ({p.where})": found.counted[m] >= p.value for m, p in claim.at_least.items()}
    checks |= {f"{m} is at most {p.value:g} ({p.where})": found.counted[m] <= p.value for m, p in claim.at_most.items()}
    checks |= {f"{m} is above 1": found.counted[m] > 1 for m in claim.saves}
    shape = f"{found.shape}; {lab.shape()}"
    verdict = "holds" if all(checks.values()) else "fails"
    return entry_of(claim, verdict, checks=checks, measured=rounded(found.counted), timed=rounded(found.timed), shape=shape)


def _effect(socket: str, name: str, claim: Experiment, lab: LocalLab) -> Entry:
    conditions = [given.measure(lab) for given in claim.given]

    def measure(arm: str, look: int, first: int, count: int) -> Outcomes:
        return claim.protocol.outcomes(lab, claim.arms()[arm], look, first, count)

    judged, arms = judge.run(claim, measure, conditions)
    if arms:
        stored = {arm: outcomes.plain() for arm, outcomes in arms.items()}
        write_json(_outcomes_path(socket, name, claim, lab), {"looks": judged.looks, "arms": stored})
    return judged_entry(claim, judged)


def judged_entry(claim: Experiment, judged: Judged) -> Entry:
    """The evidence of a judged experiment."""
    arms = claim.arms()
    shown = tuple(Shown(name=n, label=arms[n].label, metrics=rounded(found)) for n, found in judged.means.items())
    return entry_of(
        claim,
        judged.verdict,
        metric=claim.metric,
        unit=claim.protocol.unit,
        units=judged.units,
        looks=judged.looks,
        primary=None if judged.primary is None else rounded(judged.primary),
        validity=rounded(judged.validity),
        secondary=rounded(judged.secondary),
        conditions=judged.conditions,
        arms=shown,
    )


def _outcomes_path(socket: str, name: str, claim: Experiment, lab: LocalLab) -> Path:
    return lab.cache / "outcomes" / f"{socket}.{name}.{claim.id}.{claim.digest()}.json"


def _stamp(path: Path, depends: Mapping[str, str]) -> None:
    """Notes with kept outcomes what they were measured with."""
    if (stored := storage.read(path, OUTCOMES)) is not None:
        write_json(path, {**stored, "depends": dict(depends)})


def rejudge(socket: str, name: str, lab: LocalLab) -> list[Entry]:
    """Judges the kept outcomes of a part's experiments again and writes the verdicts. Experiments stay as they are whose outcomes
    are not kept, or were measured with something else than the evidence says."""
    found = files.read(socket, name)
    before = {entry.id: entry for entry in (found.claims if found else ())}
    entries = []
    every = claims_of(socket, name)
    for claim in every:
        if not isinstance(claim, Experiment) or claim.id not in before or before[claim.id].digest != claim.digest():
            continue
        stored, old = storage.read(_outcomes_path(socket, name, claim, lab), OUTCOMES), before[claim.id]
        if stored is None or stored.get("depends") != dict(old.depends):
            continue
        arms = {arm: Outcomes.parse(value) for arm, value in stored["arms"].items()}
        judged = judge.judge(claim, arms, stored["looks"], old.conditions)
        new = judged_entry(claim, judged)
        keeps = {n: getattr(old, n) for n in ("history", "depends", "seconds", "machine")}
        entries.append(replace(new, **keeps))
    if entries:
        recording.update(socket, name, entries, lab, every)
    return entries
