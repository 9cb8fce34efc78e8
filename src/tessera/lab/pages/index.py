"""The index: a mosaic of all systems, their search and filters, and the list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tessera import registry
from tessera.lab.catalog import STATUSES, Built, Catalog, System, total
from tessera.lab.judge import VERDICTS
from tessera.lab.pages import layout
from tessera.lab.pages.markdown import inline
from tessera.lab.pages.text import words
from tessera.lab.works import Work


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """One system in the mosaic."""

    n: int
    standing: layout.Standing
    old: bool
    href: str
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemRow:
    """One system in the list. data: what the search and the filters look at."""

    work: Work
    href: str
    data: dict[str, Any]
    socket: str
    verdicts: dict[str, int]
    drawn: list[str]
    badge: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Other:
    """A part without a catalogue number."""

    name: str
    socket: str
    title: Markup
    href: str
    verdicts: dict[str, int]
    drawn: list[str]


def html(catalog: Catalog) -> str:
    """The page."""
    built = [s for s in catalog.systems if s.parts]
    surveys = sum(not s.work.system for s in catalog.systems)
    verdicts = total(part.verdicts for part, _ in catalog.parts())
    standings = [layout.standing_of(system) for system in catalog.systems]
    return layout.render(
        "index.html",
        title="Tessera catalogue",
        root=f"{layout.FOLDER}/",
        kind="index",
        methods=len(catalog.systems) - surveys,
        surveys=surveys,
        figures=_figures(catalog, built, verdicts),
        verdicts=verdicts,
        mosaic=[_tile(system) for system in catalog.systems],
        legend=[(s, said, standings.count(s)) for s, said in layout.STANDINGS.items() if s in standings],
        stale=any(s.status == "stale" for s in catalog.systems),
        problems=[inline(layout.local(problem)) for problem in catalog.problems],
        choices=_choices(catalog, built),
        rows=[_row(s) for s in (*built, *(s for s in catalog.systems if not s.parts))],
        others=[_other(part) for part, work in catalog.parts() if work is None],
    )


def _figures(catalog: Catalog, built: list[System], verdicts: dict[str, int]) -> list[tuple[str, int]]:
    return [
        ("published entries", len(catalog.systems)),
        ("built as parts", len(built)),
        ("with fresh evidence", sum(s.status == "fresh" for s in built)),
        ("claims", sum(verdicts.values())),
        ("promises shown", sum(verdicts.get(v, 0) for v in layout.SHOWN)),
        ("refuted", sum(verdicts.get(v, 0) for v in layout.REFUTED)),
    ]


def _href(work: Work) -> str:
    return f"{layout.FOLDER}/{layout.file_of(work)}"


def _tile(system: System) -> Tile:
    standing = layout.standing_of(system)
    label = f"{system.work.n} {system.work.name}: {layout.tally(system.verdicts) or layout.STANDINGS[standing]}"
    return Tile(n=system.work.n, standing=standing, old=system.status == "stale", href=_href(system.work), label=label)


def _choices(catalog: Catalog, built: list[System]) -> list[tuple[str, str, list[tuple[str, str]], str]]:
    """(name, first words, options, label) of each filter."""
    used = {part.source.socket for s in built for part in s.parts}
    verdicts = {verdict for s in built for verdict in s.verdicts}
    statuses = {s.status for s in catalog.systems}
    return [
        ("socket", "any socket", [(s, words(s)) for s in registry.SOCKETS if s in used], ""),
        ("kind", "any kind", [(k, words(k)) for k in sorted({s.work.kind for s in catalog.systems})], ""),
        ("status", "any status", [("built", "built"), *((s, layout.STATUS[s]) for s in STATUSES if s in statuses)], ""),
        (
            "verdict",
            "any verdict",
            [(v, f"a claim {v}" if v in ("holds", "fails") else v) for v in VERDICTS if v in verdicts],
            "",
        ),
        ("core", "any core", [(str(k), f"core {k}" + (" and above" if k < 5 else "")) for k in range(5, 0, -1)], ""),
        ("sort", "built first", [("n", "by number"), ("name", "by name"), ("core-down", "by core")], "order"),
    ]


def _row(system: System) -> SystemRow:
    work = system.work
    sockets = " ".join(dict.fromkeys(part.source.socket for part in system.parts))
    names = " ".join(part.source.name for part in system.parts)
    data = {
        "n": work.n,
        "name": work.name.lower(),
        "kind": work.kind,
        "core": work.core,
        "socket": sockets,
        "status": system.status,
        "verdicts": ",".join(system.verdicts),
        "text": f"{work.n} {work.name} {work.title} {words(work.kind)} {words(sockets)} {names}".lower(),
    }
    return SystemRow(
        work=work,
        href=_href(work),
        data=data,
        socket=words(sockets),
        verdicts=system.verdicts,
        drawn=layout.tiles(system.verdicts),
        badge="" if system.status == "none" or (system.status == "no evidence" and system.verdicts) else system.status,
    )


def _other(part: Built) -> Other:
    return Other(
        name=part.source.name,
        socket=words(part.source.socket),
        title=inline(part.source.title),
        href=f"{layout.FOLDER}/{layout.file_of_part(part)}",
        verdicts=part.verdicts,
        drawn=layout.tiles(part.verdicts),
    )
