"""`tessera verify`: runs the claims of parts and keeps what they measured."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli.common import JsonOption, emit, note, progress
from tessera.errors import TesseraError, UserError, unknown

if TYPE_CHECKING:
    from rich.table import Table

    from tessera.lab.claim import Kind
    from tessera.registry import Part

FAILED = ("crashed",)
"""Verdicts with which the command's exit code is 1; an effect that does not show is a result, not a failure."""


def verify(
    names: Annotated[list[str] | None, typer.Argument(help="Parts: name, or socket/name.", show_default=False)] = None,
    everything: Annotated[bool, typer.Option("--all", help="All parts that have claims.", show_default=False)] = False,
    stale: Annotated[bool, typer.Option("--stale", help="Only parts whose evidence is stale or missing.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Only exact claims; nothing is written.", show_default=False)] = False,
    jobs: Annotated[int, typer.Option(help="Parts verified at the same time, in processes of their own.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Run the claims of parts, print what they measured, and write the evidence.

    Every claim says what was measured, the baseline, the control that should fail, and a verdict that follows from the numbers.
    An interrupted run keeps the finished claims and goes on with the others. Exit code 1 if a claim crashed, or if an exact one
    does not hold.
    """
    if not names and not everything and not stale:
        raise UserError("name a part, for example `tessera verify fopru`, or give --all or --stale.")
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, not {jobs}.")
    chosen = _chosen(names or [], stale)
    if not chosen:
        note("nothing to verify: all evidence is fresh." if stale else "none of these parts has claims.")
    kinds: tuple[Kind, ...] = ("exact",) if fast else ()
    found = _apart(chosen, fast, jobs) if jobs > 1 and len(chosen) > 1 else _here(chosen, kinds)
    emit({"parts": found}, as_json, lambda value: table(value["parts"]))
    entries = [entry for part in found for entry in part["claims"]]
    if any(e["verdict"] in FAILED or (e["kind"] == "exact" and e["verdict"] not in ("holds", "not applicable")) for e in entries):
        raise typer.Exit(1)


def _chosen(names: Sequence[str], stale: bool) -> list[Part]:
    """The parts that are named (all if none is), those with claims only if none is named."""
    from tessera import registry
    from tessera.lab import evidence
    from tessera.lab.claim import claims_of

    known = [(socket, name) for socket in registry.SOCKETS for name in registry.names(socket)]
    wanted: list[tuple[str, str]] = []
    for text in names:
        socket, slash, name = text.rpartition("/")
        fitting = [pair for pair in known if pair[1] == name and (not slash or pair[0] == socket)]
        if not fitting:
            raise unknown("part", text, [n for _, n in known] if not slash else [f"{s}/{n}" for s, n in known])
        wanted += fitting
    parts = [registry.get(socket, name) for socket, name in (wanted or known)]
    parts = [part for part in parts if wanted or claims_of(part)]
    return [part for part in parts if evidence.status(part, _read(part)) != "fresh"] if stale else parts


def _read(part: Part) -> Any:
    """The part's evidence; damaged evidence counts as none, and is said."""
    from tessera.lab import evidence

    try:
        return evidence.read(part)
    except UserError as error:
        note(str(error))
        return None


def _here(parts: Sequence[Part], kinds: Sequence[Kind]) -> list[dict[str, Any]]:
    from tessera.lab.claim import claims_of
    from tessera.lab.lab import Lab
    from tessera.lab.verify import verify as run

    total = sum(len([c for c in claims_of(part) if not kinds or c.kind in kinds]) for part in parts)
    found = []
    with progress() as bars:
        task = bars.add_task("verifying", total=total)
        for part in parts:

            def said(part: Part, claim: Any, entry: Any) -> None:
                bars.update(task, description=f"{part.name}: {claim.title}", advance=0 if entry is None else 1)

            done = run(part, Lab(), kinds=kinds, on_claim=said)
            found.append(asdict(done.evidence) | {"written": None if done.written is None else str(done.written)})
    return found


def _apart(parts: Sequence[Part], fast: bool, jobs: int) -> list[dict[str, Any]]:
    """Each part in a process of its own, `jobs` at a time."""

    def one(part: Part) -> list[dict[str, Any]]:
        command = [sys.executable, "-m", "tessera.cli.main", "verify", f"{part.socket}/{part.name}", "--json"]
        done = subprocess.run([*command, *(["--fast"] if fast else [])], capture_output=True, text=True, check=False)
        try:
            parts: list[dict[str, Any]] = json.loads(done.stdout)["parts"]
        except (ValueError, KeyError) as error:
            last = done.stderr.strip().splitlines()[-1:] or ["no output"]
            raise TesseraError(f"verifying {part.name} ended with code {done.returncode}: {last[0]}") from error
        return parts

    with ThreadPoolExecutor(jobs) as pool, progress() as bars:
        task = bars.add_task("verifying", total=len(parts))
        found = []
        for result in pool.map(one, parts):
            bars.advance(task)
            found += result
    return found


def table(parts: Sequence[dict[str, Any]]) -> Table:
    """One row per claim."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in ("part", "claim", "measured", "baseline", "control", "verdict"):
        made.add_column(column, overflow="fold")
    made.add_column("s", justify="right")
    styles = {"holds": "green", "partly": "yellow", "not reproduced": "red", "crashed": "bold red", "not applicable": "dim"}
    for part in parts:
        for entry in part["claims"]:
            verdict = entry["verdict"]
            missed = [what for what, met in entry["checks"].items() if not met]
            text = verdict if verdict != "partly" else f"partly (not: {'; '.join(missed)})"
            if verdict == "crashed":
                text = f"crashed: {entry['note']}"
            spread = entry["spread"]
            of_control = {name.removeprefix("control "): v for name, v in spread.items() if name.startswith("control ")}
            made.add_row(
                part["part"],
                f"{entry['title']} [dim]({entry['kind']})[/dim]",
                _numbers(entry["measured"], spread),
                _numbers(entry["baseline"], {}),
                _numbers(entry["control"], of_control),
                f"[{styles[verdict]}]{text}[/]",
                f"{entry['seconds']:.0f}",
            )
    return made


def _numbers(values: dict[str, float], spread: dict[str, float]) -> str:
    return "\n".join(
        f"{name} {value:.4g}" + (f" ± {spread[name]:.2g}" if name in spread else "") for name, value in values.items()
    )
