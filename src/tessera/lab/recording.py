"""Writes results into evidence files, with the behaviours that they were measured with and the history of experiments.

Several processes may do so at the same time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tessera import registry
from tessera.errors import TesseraError, UserError
from tessera.io import write_json
from tessera.lab import evidence as files
from tessera.lab.behaviour import Numbers, differences
from tessera.lab.evidence import Entry, Evidence, Former
from tessera.lab.experiment import Claim
from tessera.lab.local_lab import LocalLab
from tessera.lab.storage import locked


def update(socket: str, name: str, entries: Sequence[Entry], lab: LocalLab, claims: Sequence[Claim]) -> Path:
    """Puts results into the part's file, beside those of its other claims, in the order of `claims`; what is no claim any more
    goes."""
    from tessera.evaluation import provenance

    path = files.path_of(socket, name)
    with locked(lab.cache / f"evidence.{socket}.{name}.lock"):
        try:
            before = files.parse(path) if path.is_file() else None
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


def fingerprint(socket: str, name: str, lab: LocalLab, before: Evidence | None) -> tuple[Numbers, int]:
    """(the part's present behaviour, its version): one more than in `before` if it changed; the same keeps its numbers."""
    now = _whole(f"part {socket}/{name}", lab)
    if before is None or not before.behaviour:
        return now, 1
    return (now, before.version + 1) if differences(before.behaviour, now) else (before.behaviour, before.version)


def _whole(name: str, lab: LocalLab) -> Numbers:
    """The present behaviour. Raises `TesseraError` where it cannot be computed: nothing is measured with what cannot be told from
    something else."""
    now = lab.behaviour(name)
    if "error" in now:
        raise TesseraError(f"the behaviour of {name} cannot be computed: {now['error']}")
    return now


def record(names: Sequence[str], lab: LocalLab) -> None:
    """Brings the recorded behaviours of protocols and core up to date: a changed one gets its next version."""
    with locked(lab.cache / "behaviour.lock"):
        known, changed = files.goldens(), {}
        for name in names:
            if name.partition(" ")[0] not in ("protocol", "core"):
                continue
            now, before = _whole(name, lab), known.get(name)
            if before is None or differences(before["numbers"], now):
                changed[name] = {"version": before["version"] + 1 if before else 1, "numbers": now}
        if changed:
            write_json(files.folder() / "behaviour.json", dict(sorted({**files.goldens_in(files.folder()), **changed}.items())))


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
