"""`tessera catalog`, `tessera list` and `tessera show`: the published systems, the parts, and what is known of one of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.cli.verify_tables import STYLES, arms, effect, verdict
from tessera.console import JsonOption, emit, note
from tessera.lab.pages.text import words

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from tessera.lab.catalog import Built, Catalog
    from tessera.lab.evidence import Entry
    from tessera.lab.experiment import Claim
    from tessera.lab.works import Work

MARKS = {"fresh": "green", "stale": "yellow", "no evidence": "dim", "no claims": "dim", "none": "dim"}


def catalog(
    html: Annotated[Path | None, typer.Option("--html", help="Write the catalogue as static pages into this folder.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the published systems, which parts implement them, and what became of their claims."""
    found = _load()
    if html is not None:
        from tessera.lab.pages import site

        note(f"written: {site.write(found, html)}")
    if as_json:
        emit(found.plain(), True, str)
    elif html is None:
        emit(found, False, _systems)


def list_(
    socket: Annotated[str | None, typer.Argument(help="Only the parts of this socket.")] = None,
    as_json: JsonOption = False,
) -> None:
    """List the parts by socket: what they implement, and how their claims fared."""
    found = _load(socket)
    rows = found.parts()
    if as_json:
        emit({"parts": [_row(part, work) for part, work in rows], "problems": found.problems}, True, str)
    elif rows:
        emit(rows, False, _parts)
    else:
        note(f"no part fills the socket {socket!r} yet.")


def show(
    name: Annotated[str, typer.Argument(help="A part (fopru, tokens/fopru), a catalogue number, or a published name.")],
    as_json: JsonOption = False,
) -> None:
    """Show one part or published system: what it does, its options, its claims with their numbers."""
    from tessera.lab.catalog import Catalog

    work, parts = Catalog.load().find(name)
    for part in parts:
        if part.problem:
            note(part.problem)
    if as_json:
        emit(_details(work, parts), True, str)
    else:
        emit((work, parts), False, _page)


def _load(socket: str | None = None) -> Catalog:
    """The catalogue; what could not be read is said on stderr."""
    from tessera.lab.catalog import Catalog

    found = Catalog.load(socket)
    for problem in found.problems:
        note(problem)
    return found


# Plain data


def _row(part: Built, work: Work | None) -> dict[str, Any]:
    return {
        "socket": part.source.socket,
        "part": part.source.name,
        "n": work and work.n,
        "system": work and work.name,
        "title": part.source.title,
        "status": part.status,
        "verdicts": part.verdicts,
    }


def _details(work: Work | None, parts: tuple[Built, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {"system": work}
    found["parts"] = [
        {
            **_row(part, work),
            "doc": part.source.doc,
            "options": part.source.settings(),
            "claims": [_claim(part, *result) for result in part.results()],
            "behaviour": part.evidence and part.evidence.version,
            "problem": part.problem or None,
        }
        for part in parts
    ]
    return found


def _claim(part: Built, claim: Claim | None, entry: Entry | None) -> dict[str, Any]:
    found = {} if claim is None else {"id": claim.id, "kind": claim.kind, "promise": claim.promise, "paper": claim.paper}
    found |= {"verdict": "not run"} if entry is None else entry.plain()
    return {**found, "stale": part.reasons.get(str(found["id"]), [])}


# Tables


def _systems(found: Catalog) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    table = _table("n", "system", "kind", "core", "part", "claims", "evidence")
    for column in (0, 3):
        table.columns[column].justify = "right"
    for system in found.systems:
        work = system.work
        keys = ", ".join(part.key for part in system.parts)
        style = "" if system.parts else "dim"
        status = "survey" if not work.system else "" if system.status == "none" else system.status
        table.add_row(
            *(Text(cell, style=style) for cell in (str(work.n), work.name, words(work.kind), str(work.core), keys)),
            _verdicts(system.verdicts),
            Text(status, style=MARKS[system.status]),
        )
    built = [s for s in found.systems if s.parts]
    fresh = sum(s.status == "fresh" for s in built)
    end = f"{len(found.systems)} published entries, {len(built)} built as parts, {fresh} with fresh evidence."
    return Group(table, Text(f"\n{end}\nAs pages to browse: tessera catalog --html DIR", style="dim"))


def _parts(rows: list[tuple[Built, Work | None]]) -> RenderableType:
    from rich.text import Text

    table = _table("part", "n", "what it is", "claims", "evidence")
    table.columns[1].justify = "right"
    table.columns[0].no_wrap = table.columns[4].no_wrap = True
    before = ""
    for part, work in rows:
        source = part.source
        if source.socket != before:
            if before:
                table.add_row()
            table.add_row(Text(words(source.socket), style="bold"))
            before = source.socket
        number = Text(str(work.n) if work else "", style="dim")
        status = Text(part.status if part.evidence or part.claims else "", style=MARKS[part.status])
        table.add_row(Text(f"  {source.name}", style="cyan"), number, Text(source.title), _verdicts(part.verdicts), status)
    return table


def _page(found: tuple[Work | None, tuple[Built, ...]]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    work, parts = found
    lines: list[RenderableType] = []
    if work is not None:
        lines.append(Text.assemble((work.name, "bold"), (f"  {words(work.kind)}, number {work.n}, core {work.core} of 5", "dim")))
        lines.append(Text(work.title, style="italic"))
        lines += [Text(f"{link.label}: {link.url}", style="dim") for link in work.links]
    for part in parts:
        lines += _part(part)
    if not parts and work is not None:
        lines += [Text(), Text(work.about)] if work.about else []
        lines.append(Text("\nNo part implements it." if work.system else "\nA survey: nothing to build.", style="dim"))
    return Group(*lines)


def _part(part: Built) -> list[RenderableType]:
    from rich.text import Text

    source = part.source
    lines: list[RenderableType] = [Text(), Text.assemble((part.key, "bold cyan"))]
    lines.append(Text(_reflowed(source.doc)))  # unpadded: padding would cut what is piped
    if options := source.settings():
        table = _table("option", "type", "default")
        for option in options:
            table.add_row(Text(option.name, style="cyan"), Text(option.type), Text(option.default))
        lines += [Text(), table]
    if part.results():
        lines += [Text(), _claims(part)]
    if part.claims or part.evidence is not None:
        lines.append(Text(f"\n{_evidence(part)}", style="dim"))
    return lines


def _evidence(part: Built) -> str:
    again = f"`tessera verify {part.source.name}`"
    if part.evidence is None:
        return f"No results yet: {again} runs the claims."
    seconds = sum(entry.seconds for entry in part.evidence.claims)
    said = "".join(f"{claim}: {'; '.join(why)}. " for claim, why in part.reasons.items())
    return f"{said}{again} runs what has no fresh result; all claims together took {seconds:.0f} s."


def _claims(part: Built) -> Table:
    from rich.text import Text

    table = _table("claim", "kind", "verdict", "arms", "effect")
    for claim, entry in part.results():
        if entry is None:
            table.add_row(Text(claim.promise if claim else ""), Text(claim.kind if claim else ""), Text("not run", style="dim"))
            continue
        title = Text(entry.promise if claim is None else claim.promise)
        for check, met in entry.checks.items():
            title.append(f"\n{'✓' if met else '✗'} {check}", style="green" if met else "red")
        for change in entry.amended:
            title.append(f"\nChanged: {change}", style="dim")
        if entry.note:
            title.append(f"\n{entry.note}", style="dim italic")
        plain = entry.plain()
        table.add_row(title, Text(entry.kind), verdict(plain), arms(plain), effect(plain))
    return table


def _verdicts(found: Mapping[str, int]) -> Text:
    from rich.text import Text

    text = Text()
    for name, count in found.items():
        said = "hold" if name == "holds" and count > 1 else name
        text.append(", " if text else "").append(f"{count} {said}", style=STYLES[name])
    return text


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        table.add_column(column)
    return table


def _reflowed(doc: str) -> str:
    """The docstring with its paragraphs as single lines, so that they take the terminal's width; lists and code as they are."""
    paragraphs = doc.split("\n\n")
    return "\n\n".join(p if p.lstrip().startswith("- ") or p.startswith("    ") else " ".join(p.split()) for p in paragraphs)
