"""Writes the catalogue's pages into a folder."""

from __future__ import annotations

from pathlib import Path

from tessera.errors import UserError
from tessera.io import atomic_folder, disk_error, write_text
from tessera.lab.catalog import Built, Catalog
from tessera.lab.pages import index, layout, system
from tessera.lab.works import Work


def write(catalog: Catalog, folder: Path) -> Path:
    """Writes index.html and the folder of its pages, and returns the index.

    What an earlier call wrote is replaced; other files in `folder` are left alone. Raises `UserError` if something there that
    is not the catalogue's would have to give way.
    """
    _check(folder)
    pages = files(catalog)
    first = pages.pop("index.html")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_folder(folder / layout.FOLDER) as temporary:
            for name, text in pages.items():
                (temporary / name).write_text(text, encoding="utf-8")
        write_text(folder / "index.html", first)
    except OSError as error:
        raise disk_error(error, folder) from error
    return folder / "index.html"


def files(catalog: Catalog) -> dict[str, str]:
    """File name -> text; all but index.html stand in the folder `layout.FOLDER`."""
    found = {"index.html": index.html(catalog), "catalogue.css": layout.style(), "catalogue.js": layout.script()}
    systems = [(s.work, s.parts, layout.file_of(s.work), s.work.name) for s in catalog.systems]
    others: list[tuple[Work | None, tuple[Built, ...], str, str]] = [
        (None, (part,), layout.file_of_part(part), part.source.name) for part, work in catalog.parts() if work is None
    ]
    for rows in (systems, others):
        for k, (work, parts, name, _) in enumerate(rows):
            before = rows[k - 1][2:] if k else None
            after = rows[k + 1][2:] if k + 1 < len(rows) else None
            found[name] = system.html(work, parts, before, after)
    return found


def _check(folder: Path) -> None:
    """Refuses a folder in which the catalogue would replace what is not its own."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; the catalogue is written into a folder.")
    first, pages = folder / "index.html", folder / layout.FOLDER
    foreign = [first] if first.exists() and layout.GENERATOR not in _head(first) else []
    foreign += [pages] if pages.exists() and not (pages / "catalogue.css").is_file() else []
    if foreign:
        raise UserError(f"{foreign[0]} is there already and is no catalogue of Tessera; choose another folder.")


def _head(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")[:2000]
    except OSError:
        return ""
