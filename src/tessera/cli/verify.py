"""`tessera verify`: runs the claims of parts, judges them, and keeps what they measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli.verify_tables import freshness, sampled, table
from tessera.console import JsonOption, emit, err, note, progress
from tessera.errors import TesseraError, UserError, unknown

if TYPE_CHECKING:
    from tessera.lab.evidence import Entry
    from tessera.lab.experiment import Claim
    from tessera.lab.local_lab import LocalLab

FAILED = ("crashed", "fails")
"""Verdicts with which the command's exit code is 1; an effect that does not show is a result, not a failure."""


def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Parts: name, or socket/name.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="All parts that have claims.", show_default=False)] = False,
    again: Annotated[bool, typer.Option("--again", help="Run claims whose evidence is fresh too.", show_default=False)] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Run exact claims only; write nothing.", show_default=False)] = False,
    check: Annotated[bool, typer.Option("--check", help="Run nothing: is all evidence fresh?", show_default=False)] = False,
    rejudge: Annotated[bool, typer.Option("--rejudge", help="Judge kept outcomes anew.", show_default=False)] = False,
    sample: Annotated[str, typer.Option(help="Measure a sample of effects anew, drawn by this key; compare.")] = "",
    budget: Annotated[float, typer.Option(help="Seconds that a sample may cost, by its evidence.", min=1)] = 300,
    first: Annotated[list[str] | None, typer.Option(help="Parts that a sample takes first (socket/name).")] = None,
    jobs: Annotated[int, typer.Option(help="Claims that run at the same time, in processes of their own.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="Threads of each process.", min=1)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Run the claims of parts that have no fresh evidence, print what they measured, and write the evidence.

    An experiment compares arms on the same units and is judged by one rule: supported, contradicted, inconclusive, invalid (the
    control did not fail) or not applicable (a precondition does not hold). Exact claims and costs hold or fail. Evidence is
    fresh as long as the experiment is the same and everything that it was measured with behaves as it did. What is measured is
    kept in the user's cache folder, so that an interrupted run goes on where it stopped.

    Exit code 1 if a claim crashed, or an exact one or a cost fails; with --check if evidence is stale, missing or damaged; with
    --sample if a verdict is not that of the evidence.
    """
    if not names and not everything and not check and not sample:
        raise UserError("name a part, for example `tessera verify fopru`, or give --all.")
    if check + rejudge + bool(sample) + (fast or again) > 1:
        raise UserError("--check, --rejudge, --sample and a run (--fast, --again) are four different things; give one of them.")
    chosen, broken = _chosen(names or [])
    if check:
        _check(chosen, broken, threads, as_json)
    elif rejudge:
        _rejudge(chosen, broken, threads, as_json)
    elif sample:
        _sample(chosen, sample, budget, first or [], threads, as_json)
    elif fast:
        _fast(chosen, broken, threads, as_json)
    else:
        _run(chosen, broken, again, jobs, threads, as_json)


@dataclass(slots=True)
class PartEvidence:
    """A part with its claims and the entries of its evidence; what is `stale`: claim -> why; `problem`: damaged evidence."""

    socket: str
    name: str
    claims: list[Claim]
    entries: dict[str, Entry] = field(default_factory=dict)
    stale: dict[str, list[str]] = field(default_factory=dict)
    problem: str = ""

    @property
    def key(self) -> str:
        """`socket/name`."""
        return f"{self.socket}/{self.name}"

    def plain(self, ran: Sequence[str] = ()) -> dict[str, Any]:
        """As JSON: the claims in order, each with whether it ran just now; one without a result has not run."""
        rows = []
        for claim in self.claims:
            entry = self.entries.get(claim.id)
            found = {"verdict": "not run", "seconds": 0.0, **({} if entry is None else entry.plain())}
            rows.append({"id": claim.id, "kind": claim.kind, "promise": claim.promise, **found, "ran": claim.id in ran})
        return {"socket": self.socket, "part": self.name, "claims": rows}


def _chosen(names: Sequence[str]) -> tuple[list[PartEvidence], list[str]]:
    """(the parts that are named, or all with claims; what is wrong with parts that cannot be imported)."""
    from tessera import registry
    from tessera.lab.claims import claims_of

    known = [(socket, name) for socket in registry.SOCKETS for name in registry.names(socket)]
    if names:
        pairs = dict.fromkeys(pair for text in names for pair in _fitting(text, known))
        return [_part(*pair, claims_of(*pair)) for pair in pairs], []
    parts, broken = [], []
    for socket, name in known:
        try:
            if found := claims_of(socket, name):
                parts.append(_part(socket, name, found))
        except Exception as error:  # one part that cannot be imported must not keep the others from being verified
            broken.append(f"{socket}/{name} cannot be read: {type(error).__name__}: {' '.join(str(error).split())}")
    for sentence in broken:
        note(sentence)
    return parts, broken


def _part(socket: str, name: str, claims: list[Claim]) -> PartEvidence:
    from tessera.lab import evidence

    made = PartEvidence(socket, name, claims)
    try:
        found = evidence.read(socket, name)
    except UserError as error:
        made.problem = str(error)
        note(made.problem)
        return made
    made.entries = {entry.id: entry for entry in (found.claims if found else ())}
    return made


def _fitting(text: str, known: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    socket, slash, name = text.rpartition("/")
    fitting = [pair for pair in known if pair[1] == name and (not slash or pair[0] == socket)]
    if fitting:
        return fitting
    elsewhere = [s for s, n in known if n == name]
    if slash and elsewhere:
        raise UserError(f"{name!r} is no part of socket {socket!r}, but of {' and '.join(map(repr, elsewhere))}.")
    raise unknown("part", text, [n for _, n in known] if not slash else [f"{s}/{n}" for s, n in known])


def _looked(parts: Sequence[PartEvidence], lab: LocalLab) -> None:
    """Finds what is stale; takes seconds for every part whose behaviour nobody has looked at since the source changed."""
    from tessera.lab.freshness import why_stale

    with progress() as bars:
        task = bars.add_task("looking at behaviours", total=len(parts))
        for part in parts:
            bars.update(task, description=f"behaviour of {part.key}")
            for claim in part.claims:
                if why := why_stale(part.socket, part.name, claim, part.entries.get(claim.id), lab):
                    part.stale[claim.id] = why
            bars.advance(task)


# Running


def _run(parts: Sequence[PartEvidence], broken: Sequence[str], again: bool, jobs: int, threads: int, as_json: bool) -> None:
    from tessera.lab.local_lab import LocalLab
    from tessera.lab.storage import cache_folder, tidy
    from tessera.lab.workers import Task

    lab = LocalLab(threads=threads)
    if not again:
        _looked(parts, lab)
    tasks = []
    for part in parts:
        for claim in part.claims:
            if again or claim.id in part.stale:
                before = part.entries.get(claim.id)
                tasks.append(Task(part.socket, part.name, claim.id, before.seconds if before else 0.0))
    if not tasks:
        note(
            "nothing to run: all evidence is fresh." if any(part.claims for part in parts) else "none of these parts has claims."
        )
    ran: dict[str, list[str]] = {part.key: [] for part in parts}
    by_key = {part.key: part for part in parts}
    try:
        with _telling(tasks, jobs) as (begins, ended):
            results = _apart(tasks, jobs, threads, begins) if jobs > 1 and len(tasks) > 1 else _here(tasks, lab, begins)
            for task, result in results:
                part = by_key[f"{task.socket}/{task.part}"]
                entry = _crashed(part, task.claim, result) if isinstance(result, str) else result
                part.entries[task.claim] = entry
                ran[part.key].append(task.claim)
                ended(task, entry)
    finally:
        tidy(cache_folder())
    _tell([part.plain(ran[part.key]) for part in parts], broken, as_json)


def _here(tasks: Sequence[Any], lab: LocalLab, begins: Any) -> Iterator[tuple[Any, Entry | str]]:
    from tessera.lab.claims import claims_of
    from tessera.lab.verify import verify as run

    for task in tasks:
        begins(task)
        claims = [claim for claim in claims_of(task.socket, task.part) if claim.id == task.claim]
        try:
            yield task, run(task.socket, task.part, claims, lab)[0]
        except TesseraError as error:  # changed without saying why, or no fingerprint: the others still run
            yield task, str(error)


def _apart(tasks: Sequence[Any], jobs: int, threads: int, begins: Any) -> Iterator[tuple[Any, Entry | str]]:
    from tessera.lab.workers import spread

    return spread(tasks, jobs, threads, begins)


def _crashed(part: PartEvidence, claim: str, why: str) -> Entry:
    """A claim whose process did not live to tell; nothing is written."""
    from tessera.lab.verify import entry_of

    return entry_of(next(c for c in part.claims if c.id == claim), "crashed", note=why)


@contextmanager
def _telling(tasks: Sequence[Any], jobs: int) -> Iterator[tuple[Any, Any]]:
    """(called when a task begins, when it has ended): a bar that counts expected seconds on a terminal, a line per result with
    the time that is left elsewhere."""
    known = sorted(task.seconds for task in tasks if task.seconds)
    usual = known[len(known) // 2] if known else 30.0
    left = {id(task): task.seconds or usual for task in tasks}
    terminal = err().is_terminal
    with progress() as bars:
        bar = bars.add_task("verifying", total=len(tasks))

        def begins(task: Any) -> None:
            bars.update(bar, description=f"{task.socket}/{task.part}: {task.claim}")

        def ended(task: Any, entry: Entry) -> None:
            left.pop(id(task), None)
            minutes = sum(left.values()) / max(1, min(jobs, len(left) or 1)) / 60
            bars.update(bar, advance=1)
            if not terminal:
                told = f"{entry.verdict}, {entry.seconds:.1f} s; {len(left)} left, about {minutes:.0f} min"
                note(f"{task.socket}/{task.part}: {task.claim}: {told}")

        yield begins, ended


def _fast(parts: Sequence[PartEvidence], broken: Sequence[str], threads: int, as_json: bool) -> None:
    """Exact claims, which write nothing."""
    from tessera.lab.local_lab import LocalLab
    from tessera.lab.verify import run
    from tessera.lab.workers import Task

    lab = LocalLab(threads=threads)
    chosen = [replace(part, claims=[c for c in part.claims if c.kind == "exact"], entries={}) for part in parts]
    tasks = [Task(part.socket, part.name, claim.id, 2.0) for part in chosen for claim in part.claims]
    with _telling(tasks, 1) as (begins, ended):
        number = iter(tasks)
        for part in chosen:
            for claim in part.claims:
                task = next(number)
                begins(task)
                part.entries[claim.id] = run(part.socket, part.name, claim, lab)
                ended(task, part.entries[claim.id])
    _tell([part.plain([c.id for c in part.claims]) for part in chosen if part.claims], broken, as_json)


def _rejudge(parts: Sequence[PartEvidence], broken: Sequence[str], threads: int, as_json: bool) -> None:
    from tessera.lab.local_lab import LocalLab
    from tessera.lab.verify import rejudge

    lab = LocalLab(threads=threads)
    rows = []
    for part in parts:
        done = [] if part.problem else rejudge(part.socket, part.name, lab)
        part.entries |= {entry.id: entry for entry in done}
        rows.append(part.plain([entry.id for entry in done]))
    count = sum(claim["ran"] for row in rows for claim in row["claims"])
    note(f"judged anew: {count} experiments whose outcomes are kept; the others are as they were.")
    _tell(rows, broken, as_json)


def _tell(rows: list[dict[str, Any]], broken: Sequence[str], as_json: bool) -> None:
    found = [claim for row in rows for claim in row["claims"]]
    kinds = ("effect", "exact", "cost")
    counts = {kind: _counts([c["verdict"] for c in found if c["kind"] == kind]) for kind in kinds}
    emit({"parts": rows, "verdicts": counts, "broken": list(broken)}, as_json, lambda _: table(rows))
    if broken or any(claim["verdict"] in FAILED for claim in found):
        raise typer.Exit(1)


def _counts(verdicts: Sequence[str]) -> dict[str, int]:
    return {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)}


# Looking


def _check(parts: Sequence[PartEvidence], broken: Sequence[str], threads: int, as_json: bool) -> None:
    """Says of every claim whether its evidence is fresh. A claim that nobody has run is named, but nothing that is said to be
    measured is wrong."""
    from tessera.lab.local_lab import LocalLab

    _looked(parts, LocalLab(threads=threads))
    rows = []
    for part in parts:
        ran = {i for i, entry in part.entries.items() if entry.verdict != "not run"}
        status = "damaged" if part.problem else "no evidence" if not ran else "stale" if part.stale.keys() & ran else "fresh"
        missing = [claim.id for claim in part.claims if claim.id not in ran]
        stale = {claim: why for claim, why in part.stale.items() if claim in ran}
        rows.append({"socket": part.socket, "part": part.name, "status": status, "stale": stale, "not run": missing})
    emit({"parts": rows, "broken": list(broken)}, as_json, lambda _: freshness(rows))
    if broken or any(row["status"] in ("stale", "damaged") for row in rows):
        raise typer.Exit(1)


def _sample(parts: Sequence[PartEvidence], key: str, budget: float, first: Sequence[str], threads: int, as_json: bool) -> None:
    """Measures effects anew, with nothing kept from earlier runs. Exit code 1 if a verdict differs from the evidence."""
    import tempfile
    from pathlib import Path

    from tessera.lab.local_lab import LocalLab
    from tessera.lab.sample import Again, Drawn, again, draw

    drawn = draw([(p.socket, p.name) for p in parts if not p.problem], key, budget, first)
    damaged = [part.key for part in parts if part.problem]
    if not drawn:
        note(f"no experiment with evidence costs at most {budget:g} s: nothing is measured anew.")
    with tempfile.TemporaryDirectory(prefix="tessera-") as folder, progress() as bars:
        bar = bars.add_task("measuring anew", total=len(drawn))

        def said(one: Drawn, result: Again | None) -> None:
            bars.update(bar, description=f"{one.part}: {one.claim.id}", advance=result is not None)
            if result is not None and not err().is_terminal:
                agrees = "as" if result.agrees else "UNLIKE"
                note(f"{one.part}: {one.claim.id}: {result.now.verdict}, {agrees} its evidence, {result.now.seconds:.1f} s")

        found = again(drawn, LocalLab(cache=Path(folder), threads=threads), said)
    emit({"key": key, "budget": budget, "claims": found}, as_json, lambda _: sampled(found))
    if damaged or not all(result.agrees for result in found):
        raise typer.Exit(1)
