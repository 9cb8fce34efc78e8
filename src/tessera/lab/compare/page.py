"""A comparison as one HTML file that needs nothing else: the Pareto picture, the numbers, accuracy by question type."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from tessera.evaluation.pages import environment, style, today
from tessera.io import write_text
from tessera.lab.compare.comparison import Comparison, Kind
from tessera.lab.compare.scatter import scatter
from tessera.lab.compare.table import HEADS, cells, figures, kinds, label, of_kind
from tessera.lab.pages.layout import PACKAGE


def write_page(path: str | Path, found: Comparison, command: str = "") -> Path:
    """Writes the page to `path`, whole or not at all. command: what to type to get the same."""
    write_text(path, page(found, command))
    return Path(path)


def page(found: Comparison, command: str = "") -> str:
    """The page as a string."""
    types = kinds(found)
    settings = {label(row): row.options for row in found.rows if row.options}
    return (
        environment(PACKAGE)
        .get_template("compare.html")
        .render(
            version=found.versions.get("tessera", ""),
            css=style(PACKAGE, "compare.css"),
            date=today(),
            title=f"{found.socket[:1].upper()}{found.socket[1:].replace('_', ' ')} on {found.on}",
            command=command,
            found=found,
            best=[label(row) for row in found.rows if row.best and row.how != "bare"],
            figures=figures(found),
            operations=scatter(found.rows, lambda row: row.flops / 1e9, "GFLOPs of an answer"),
            times=scatter(found.rows, lambda row: row.milliseconds, "milliseconds of an answer"),
            heads=HEADS,
            rows=[(label(row), row, cells(row)) for row in found.rows],
            kinds=types,
            types=[(label(row), row, [_share(row.types.get(kind)) for kind in types]) for row in found.rows],
            settings={"machine": found.machine, "versions": found.versions, "options": settings},
            everything=asdict(found),
        )
    )


def _share(kind: Kind | None) -> tuple[float, str, str] | None:
    """How strong the colour of a cell is, and what it says; None for types that were not asked."""
    return None if kind is None else (62 * kind.accuracy, *of_kind(kind))
