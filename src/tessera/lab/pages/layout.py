"""What all pages share: the frame, names of files, and how a system stands in one word."""

from __future__ import annotations

import re
from importlib import resources
from typing import Literal, TypeAlias
from urllib.parse import quote

import tessera
from tessera.lab import evidence
from tessera.lab.catalog import Built, System, Work, total
from tessera.lab.pages.text import arxiv, escape, link

Standing: TypeAlias = Literal["holds", "partly", "fails", "unproven", "none"]
STANDINGS: dict[Standing, str] = {
    "holds": "every claim holds",
    "partly": "some claims hold",
    "fails": "no claim holds",
    "unproven": "built, no evidence yet",
    "none": "not built",
}
STATUS = {
    "fresh": "fresh evidence",
    "stale": "stale evidence",
    "no evidence": "no evidence yet",
    "none": "not built",
}
FOLDER = "systems"
"""Where the pages of systems, the style and the script are, beside index.html."""
GENERATOR = "Tessera catalogue"


def page(title: str, body: str, *, css: str, script: str, kind: str) -> str:
    """A whole HTML page. css, script: relative addresses; kind: the body's class."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="generator" content="{GENERATOR} {escape(tessera.__version__)}">\n'
        f'<title>{escape(title)}</title>\n<link rel="stylesheet" href="{css}">\n<script src="{script}" defer></script>\n'
        f'</head>\n<body class="{kind}">\n<main>\n{body}\n</main>\n</body>\n</html>\n'
    )


def style() -> str:
    """The reports' look and what the catalogue adds."""
    report = (resources.files("tessera.evaluation") / "report.css").read_text(encoding="utf-8")
    own = (resources.files("tessera.lab.pages") / "catalogue.css").read_text(encoding="utf-8")
    return f"{report}\n{own}"


def script() -> str:
    """Search, filters and the copy button."""
    return (resources.files("tessera.lab.pages") / "catalogue.js").read_text(encoding="utf-8")


def file_of(work: Work) -> str:
    """A system's file name."""
    return f"{work.n:03}-{_slug(work.name)}.html"


def file_of_part(built: Built) -> str:
    """The file name of a part without a catalogue number."""
    return f"{_slug(built.source.socket)}.{_slug(built.source.name)}.html"


def standing(verdicts: dict[str, int], built: bool) -> Standing:
    """Verdicts in one word; claims that were not applicable do not count, crashed ones count as not held."""
    if not built:
        return "none"
    held, some = verdicts.get("holds", 0), verdicts.get("partly", 0)
    failed = verdicts.get("not reproduced", 0) + verdicts.get("crashed", 0)
    if not held + some + failed:
        return "unproven"
    if held and not some + failed:
        return "holds"
    return "partly" if held + some else "fails"


def standing_of(system: System) -> Standing:
    return standing(system.verdicts, bool(system.parts))


def tiles(verdicts: dict[str, int]) -> str:
    """One small square per claim, coloured by its verdict."""
    said = ", ".join(f"{count} {verdict}" for verdict, count in verdicts.items())
    drawn = "".join(f'<i class="{css(verdict)}"></i>' * count for verdict, count in verdicts.items())
    return f'<span class="tiles" role="img" aria-label="{said}" title="{said}">{drawn}</span>' if drawn else ""


def local(sentence: str) -> str:
    """A problem without the folders of the machine that made the page."""
    return sentence.replace(f"{evidence.folder()}/", "").replace(f"{evidence.PACKAGE}/", "")


def css(verdict: str) -> str:
    """A verdict as a class name."""
    return "v-" + verdict.replace(" ", "-")


def badge(status: str) -> str:
    """How fresh the evidence is."""
    return f'<span class="status s-{status.replace(" ", "-")}">{STATUS.get(status, escape(status))}</span>'


def links(work: Work | None, parts: tuple[Built, ...]) -> str:
    """The paper as far as it is known, the authors' code; else a search for the title."""
    found: dict[str, str] = {}
    for part in parts:
        for text in (part.source.section("sources"), part.source.doc):
            for name in arxiv(text)[: 1 if work else 4]:
                found.setdefault(f"https://arxiv.org/abs/{name}", f"arXiv {name}")
            if found:
                break
    for known in () if work is None else work.links:
        found.setdefault(known.url, known.label)
    paper = any(label.startswith("arXiv") or label == "paper" for label in found.values())
    if work is not None and not paper:
        found[f"https://scholar.google.com/scholar?q={quote(chr(34) + work.title + chr(34))}"] = (
            "search for the paper by its title"
        )
    return "".join(link(url, label, "out") for url, label in found.items())


def all_verdicts(parts: tuple[Built, ...]) -> dict[str, int]:
    return total(part.verdicts for part in parts)


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:60].strip("-") or "part"
