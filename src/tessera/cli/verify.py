"""`tessera verify`: runs the claims of parts and keeps what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli.common import JsonOption, emit, err, note, progress
from tessera.cli.verify_tables import freshness, sampled, table
from tessera.errors import UserError, unknown

if TYPE_CHECKING:
    from tessera.lab.claim import Claim, Kind
    from tessera.lab.evidence import Entry
    from tessera.registry import Part

FAILED = ("crashed",)
"""Verdicts with which the command's exit code is 1; an effect that does not show is a result, not a failure."""


def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Parts: name, or socket/name.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="All parts that have claims.", show_default=False)] = False,
    stale: Annotated[bool, typer.Option("--stale", help="Only parts whose evidence is stale, missing or crashed.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Only exact claims; nothing is written.", show_default=False)] = False,
    check: Annotated[bool, typer.Option("--check", help="Run nothing: is all evidence fresh?")] = False,
    sample: Annotated[str, typer.Option(help="Run a sample of effect claims anew, drawn by this key; compare.")] = "",
    budget: Annotated[float, typer.Option(help="Seconds that a sample may cost, by its evidence.", min=1)] = 300,
    jobs: Annotated[int, typer.Option(help="Parts verified at the same time, in processes of their own.", min=1)] = 1,
    threads: Annotated[int, typer.Option(help="Threads of each process: numbers depend on it in the last digits.", min=1)] = 1,
    as_json: JsonOption = False,
) -> None:
    """Run the claims of parts, print what they measured and what each cost, and write the evidence.

    Every claim says what was measured, the baseline, the control that should fail, and a verdict that follows from the numbers.
    An interrupted run keeps the finished claims and goes on with the others. Models that were trained and answers that were given
    are kept in the user's cache folder, so that a run again pays for what changed: 8 GB, or what the last day made if that is
    more. Exit code 1 if a claim crashed or an exact one does not hold; with --check if evidence is stale or damaged, with
    --sample if a verdict is not that of the evidence.
    """
    if not names and not everything and not stale and not check and not sample:
        raise UserError("name a part, for example `tessera verify fopru`, or give --all or --stale.")
    if check + bool(sample) + (fast or stale) > 1:
        raise UserError("--check, --sample and a run (--fast, --stale) are three different things; give one of them.")
    chosen, broken = _chosen(names or [])
    if check:
        _check(chosen, broken, as_json)
    elif sample:
        _sample(chosen, sample, budget, threads, as_json)
    else:
        _run([part for part in chosen if not stale or _stale(part)], broken, stale, fast, jobs, threads, as_json)


def _chosen(names: Sequence[str]) -> tuple[list[Part], list[str]]:
    """(the parts that are named, or all with claims; what is wrong with parts that cannot be imported)."""
    from tessera import registry
    from tessera.lab.claim import claims_of

    known = [(socket, name) for socket in registry.SOCKETS for name in registry.names(socket)]
    if names:
        return [registry.get(*pair) for text in names for pair in _fitting(text, known)], []
    parts, broken = [], []
    for socket, name in known:
        try:
            part = registry.get(socket, name)
            if claims_of(part):
                parts.append(part)
        except Exception as error:  # one part that cannot be imported must not keep the others from being verified
            broken.append(f"{socket}/{name} cannot be imported: {type(error).__name__}: {' '.join(str(error).split())}")
    for sentence in broken:
        note(sentence)
    return parts, broken


def _fitting(text: str, known: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    socket, slash, name = text.rpartition("/")
    fitting = [pair for pair in known if pair[1] == name and (not slash or pair[0] == socket)]
    if fitting:
        return fitting
    elsewhere = [s for s, n in known if n == name]
    if slash and elsewhere:
        raise UserError(f"{name!r} is no part of socket {socket!r}, but of {' and '.join(map(repr, elsewhere))}.")
    raise unknown("part", text, [n for _, n in known] if not slash else [f"{s}/{n}" for s, n in known])


def _stale(part: Part) -> bool:
    """Whether a run would bring something new; damaged evidence counts as none, and is said."""
    from tessera.lab import evidence

    found = _read(part)
    crashed = found is not None and any(entry.verdict == "crashed" for entry in found.claims)
    return crashed or evidence.status(part, found) != "fresh"


def _read(part: Part) -> Any:
    from tessera.lab import evidence

    try:
        return evidence.read(part)
    except UserError as error:
        note(str(error))
        return None


# Running


def _run(chosen: Sequence[Part], broken: Sequence[str], stale: bool, fast: bool, jobs: int, threads: int, as_json: bool) -> None:
    if not chosen:
        note("nothing to verify: all evidence is fresh." if stale else "none of these parts has claims.")
    from tessera.lab.lab import cache_folder
    from tessera.lab.storage import tidy

    kinds: tuple[Kind, ...] = ("exact",) if fast else ()
    try:
        found = _apart(chosen, fast, jobs, threads) if jobs > 1 and len(chosen) > 1 else _here(chosen, kinds, threads)
    finally:
        if not fast:
            tidy(cache_folder())
    emit({"parts": found, "broken": list(broken)}, as_json, lambda _: table(found))
    entries = [entry for part in found for entry in part["claims"]]
    if broken or any(
        e["verdict"] in FAILED or (e["kind"] == "exact" and e["verdict"] not in ("holds", "not applicable")) for e in entries
    ):
        raise typer.Exit(1)


def _here(parts: Sequence[Part], kinds: Sequence[Kind], threads: int) -> list[dict[str, Any]]:
    from tessera.lab.claim import claims_of
    from tessera.lab.lab import Lab
    from tessera.lab.verify import verify as run

    total = sum(len([c for c in claims_of(part) if not kinds or c.kind in kinds]) for part in parts)
    found = []
    with _telling(total) as tell:
        for part in parts:

            def said(part: Part, claim: Claim, entry: Entry | None) -> None:
                tell(f"{part.name}: {claim.title}", None if entry is None else f"{entry.verdict}, {entry.seconds:.1f} s")

            done = run(part, Lab(threads=threads), kinds=kinds, on_claim=said)
            found.append(asdict(done.evidence) | {"written": None if done.written is None else str(done.written)})
    return found


@contextmanager
def _telling(total: int) -> Iterator[Any]:
    """A function (what, result or None) that moves a bar on a terminal, and writes a line per result elsewhere."""
    terminal = err().is_terminal
    with progress() as bars:
        task = bars.add_task("verifying", total=total)

        def tell(what: str, result: str | None) -> None:
            from rich.markup import escape

            bars.update(task, description=escape(what), advance=result is not None)
            if result is not None and not terminal:
                note(f"{what}: {result}")

        yield tell


def _apart(parts: Sequence[Part], fast: bool, jobs: int, threads: int) -> list[dict[str, Any]]:
    """Each part in a process of its own, `jobs` at a time."""

    def one(part: Part) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "tessera.cli.main", "verify", f"{part.socket}/{part.name}", "--json"]
        command += ["--threads", str(threads), *(["--fast"] if fast else [])]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            parts: list[dict[str, Any]] = json.loads(done.stdout)["parts"]
        except (ValueError, KeyError):
            last = done.stderr.strip().splitlines()[-1:] or ["no output"]
            return [_died(part, fast, f"its process ended with code {done.returncode}: {last[0]}")]
        return parts

    with ThreadPoolExecutor(jobs) as pool, _telling(len(parts)) as tell:
        found = []
        for part, result in zip(parts, pool.map(one, parts), strict=True):
            seconds = sum(entry["seconds"] for of_part in result for entry in of_part["claims"])
            tell(f"{part.socket}/{part.name}", f"{seconds:.1f} s")
            found += result
    return found


def _died(part: Part, fast: bool, why: str) -> dict[str, Any]:
    """A part whose process did not live to tell: all that it had to run counts as crashed, nothing is written."""
    from tessera.lab.claim import claims_of
    from tessera.lab.evidence import Entry

    entries = [
        asdict(Entry(id=claim.id, kind=claim.kind, title=claim.title, paper=claim.paper, verdict="crashed", note=why))
        for claim in claims_of(part)
        if not fast or claim.kind == "exact"
    ]
    return {"part": part.name, "socket": part.socket, "catalog": part.catalog, "claims": entries, "written": None}


# Looking


def _check(chosen: Sequence[Part], broken: Sequence[str], as_json: bool) -> None:
    """Says of every part whether its evidence is fresh. Exit code 1 if one's is stale or damaged; a part that has none yet is
    named, but nothing that is claimed to be measured is wrong."""
    from tessera.lab import evidence

    rows: list[dict[str, Any]] = []
    for part in chosen:
        found = _read(part)
        status = evidence.status(part, found)
        changed = [] if found is None else [n for n, value in found.hashes.items() if evidence.now(part, n) != value]
        rows.append({"part": part.name, "socket": part.socket, "status": status, "changed": changed})
    emit({"parts": rows, "broken": list(broken)}, as_json, lambda _: freshness(rows))
    damaged = [part for part, row in zip(chosen, rows, strict=True) if row["status"] == "no evidence" and _is_there(part)]
    if broken or damaged or any(row["status"] == "stale" for row in rows):
        raise typer.Exit(1)


def _is_there(part: Part) -> bool:
    from tessera.lab import evidence

    return evidence.path_of(part).is_file()


def _sample(chosen: Sequence[Part], key: str, budget: float, threads: int, as_json: bool) -> None:
    """Runs claims anew, with nothing kept from earlier runs. Exit code 1 if a verdict differs from the evidence."""
    import tempfile
    from pathlib import Path

    from tessera.lab.lab import Lab
    from tessera.lab.sample import Again, Drawn, again, draw

    drawn = draw(chosen, key, budget)
    if not drawn:
        note(f"no effect claim with fresh evidence costs at most {budget:g} s: nothing is run anew.")
    with tempfile.TemporaryDirectory(prefix="tessera-") as folder, _telling(len(drawn)) as tell:

        def said(one: Drawn, result: Again | None) -> None:
            outcome = None
            if result is not None:
                outcome = f"{result.now.verdict}, {'as' if result.agrees else 'UNLIKE'} its evidence, {result.now.seconds:.1f} s"
            tell(f"{one.part.name}: {one.claim.title}", outcome)

        found = again(drawn, Lab(cache=Path(folder), threads=threads), said)
    emit({"key": key, "budget": budget, "claims": found}, as_json, lambda _: sampled(found))
    if not all(result.agrees for result in found):
        raise typer.Exit(1)
