"""`tessera hosts`: which model families are hosts, and whether every part works on every one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tessera.console import JsonOption, emit, progress
from tessera.errors import UserError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tessera.hosts.check import CheckTable, FamilyRow

_MARKS = {"true": ("true", "green"), "refused": ("–", "dim"), "false": ("false", "bold red")}


def hosts(
    check: Annotated[bool, typer.Option("--check", help="Try every part on every family.", show_default=False)] = False,
    families: Annotated[str, typer.Option(help="Families, separated by commas; all by default.")] = "",
    parts: Annotated[str, typer.Option(help="Parts to check, separated by commas; all by default.")] = "",
    as_json: JsonOption = False,
) -> None:
    """List model families that parts plug into, and what each offers; or, with --check, try every part on every family.

    A check uses tiny models with random weights. Every cell is true (with its identity setting the part changes no bit; a cached
    generation equals an uncached one; everything is undone afterwards), refused with the reason, or false with the difference.
    Exit code 1 if any cell is false.
    """
    from tessera.hosts.check import check as run_check
    from tessera.hosts.check import list_families

    chosen = [name.strip() for name in families.split(",") if name.strip()]
    if not check:
        if parts:
            raise UserError("--parts belongs to --check.")
        emit(list_families(chosen), as_json, families_table)
        return
    with progress() as bars:
        task = bars.add_task("checking", total=None)
        result = run_check(
            chosen,
            [name.strip() for name in parts.split(",") if name.strip()],
            lambda done, total, what: bars.update(task, completed=done, total=total, description=what),
        )
    emit(result, as_json, check_table)
    if result.counts["false"]:
        raise typer.Exit(1)


def families_table(rows: list[FamilyRow]) -> RenderableType:
    """A row per family, a column per capability."""
    from rich.console import Group
    from rich.table import Table

    from tessera.hosts.architecture import CAPABILITIES

    meanings = "\n".join(f"{name}: {meaning}" for name, meaning in CAPABILITIES.items())
    table = Table(caption=meanings, caption_justify="left", box=None, padding=(0, 1, 0, 0))
    table.add_column("family", no_wrap=True)
    for name in CAPABILITIES:
        table.add_column(name.replace(" ", "\n"), justify="center")
    for row in rows:
        offers = ["?" if row.capabilities is None else "x" if name in row.capabilities else "" for name in CAPABILITIES]
        table.add_row(row.name, *offers)
    notes = [f"{row.name}: {row.note}" for row in rows if row.note]
    return Group(table, *(["", *notes] if notes else []))


def check_table(result: CheckTable) -> RenderableType:
    """Families down, parts across (a dash: refused); below, why cells are refused or false."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    cells = {(cell.family, cell.part): cell for cell in result.cells}
    table = Table(box=None)
    table.add_column("family")
    for part in result.parts:
        table.add_column(part, justify="center", overflow="fold")
    for family in result.families:
        table.add_row(family, *[Text(*_MARKS[cells[family, part].state]) for part in result.parts])
    table.add_section()
    table.add_row("true on", *[str(result.by_part[part]["true"]) for part in result.parts])
    reasons: dict[tuple[str, str], list[str]] = {}
    for cell in result.cells:
        if cell.state != "true":
            reasons.setdefault((cell.state, cell.reason), []).append(f"{cell.family} x {cell.part}")
    why = [f"{state}: {reason} ({', '.join(where)})" for (state, reason), where in reasons.items()]
    counts = ", ".join(f"{count} {state}" for state, count in result.counts.items())
    whole = f"{len(result.whole)} families true for every part of socket tokens, {len(result.sound)} for all that they can take"
    return Group(table, Text(f"\n{counts}; {whole}; {result.seconds:.0f} s"), *map(Text, why))
