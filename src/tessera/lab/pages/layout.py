"""What all pages share: templates, names of files, and the standing of a system in one word."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import quote

import tessera
from tessera.evaluation import pages
from tessera.lab import evidence
from tessera.lab.catalog import Built, System, total
from tessera.lab.judge import VERDICTS
from tessera.lab.pages import markdown, text
from tessera.lab.works import Work

if TYPE_CHECKING:
    from jinja2 import Environment

Standing: TypeAlias = Literal["shown", "partly", "open", "fails", "unproven", "none"]
STANDINGS: dict[Standing, str] = {
    "shown": "every promise is shown",
    "partly": "some promises are shown",
    "open": "nothing shown, nothing refuted",
    "fails": "none shown, some refuted",
    "unproven": "built, no result yet",
    "none": "not built",
}
SHOWN = ("supported", "holds")
OPEN = ("inconclusive", "invalid", "crashed")
REFUTED = ("contradicted", "fails")
STATUS = {
    "fresh": "fresh evidence",
    "stale": "stale evidence",
    "no evidence": "no evidence yet",
    "no claims": "no claims",
    "none": "not built",
}
FOLDER = "systems"
"""Where the pages of systems, the style and the script are, beside index.html."""
GENERATOR = "Tessera catalogue"
PACKAGE = "tessera.lab.pages"
"""Where templates, styles and the script are."""


def render(template: str, **context: Any) -> str:
    """A page. Whatever is no `Markup` is escaped, and a name that a template misspells raises."""
    return _environment().get_template(template).render(**context)


@cache
def _environment() -> Environment:
    made = pages.new_environment(PACKAGE)
    made.filters.update(
        prose=markdown.prose,
        inline=markdown.inline,
        words=text.words,
        number=text.number,
        signed=text.signed,
        seconds=text.seconds,
        css=css,
        tally=tally,
    )
    made.globals.update(generator=f"{GENERATOR} {tessera.__version__}", status_words=STATUS, link=markdown.link)
    return made


def style() -> str:
    """The reports' look and what the catalogue adds."""
    return pages.style(PACKAGE, "catalogue.css")


def script() -> str:
    """Search, filters and the copy button."""
    return (resources.files(PACKAGE) / "catalogue.js").read_text(encoding="utf-8")


def file_of(work: Work) -> str:
    """A system's file name."""
    return f"{work.n:03}-{slug(work.name)}.html"


def file_of_part(built: Built) -> str:
    """The file name of a part without a catalogue number."""
    return f"{slug(built.source.socket)}.{slug(built.source.name)}.html"


def slug(name: str) -> str:
    """A name as a file name: small letters, digits, dashes."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")[:60].strip("-") or "part"


def standing(verdicts: Mapping[str, int], built: bool) -> Standing:
    """Verdicts in one word. A claim that is not applicable does not count; one that was not run keeps "every promise" away."""
    if not built:
        return "none"
    shown, undecided, refuted = (sum(verdicts.get(v, 0) for v in group) for group in (SHOWN, OPEN, REFUTED))
    if not shown + undecided + refuted:
        return "unproven"
    if shown:
        return "partly" if undecided + refuted + verdicts.get("not run", 0) else "shown"
    return "fails" if refuted else "open"


def standing_of(system: System) -> Standing:
    """As `standing`."""
    return standing(system.verdicts, bool(system.parts))


def tally(verdicts: Mapping[str, int]) -> str:
    """`3 supported, 1 inconclusive`."""
    return ", ".join(f"{count} {'hold' if verdict == 'holds' and count > 1 else verdict}" for verdict, count in verdicts.items())


def tiles(verdicts: Mapping[str, int]) -> list[str]:
    """A class name per claim, in the order of `VERDICTS`: a small square each."""
    return [css(verdict) for verdict in VERDICTS for _ in range(verdicts.get(verdict, 0))]


def local(sentence: str) -> str:
    """A problem without the folders of the machine that made the page."""
    return sentence.replace(f"{evidence.folder()}/", "").replace(f"{evidence.PACKAGE}/", "")


def css(name: str) -> str:
    """A verdict, status or standing as a class name."""
    return slug(name)


def links(work: Work | None, parts: Iterable[Built]) -> dict[str, str]:
    """Address -> words: the paper as far as it is known, the authors' code; else a search for the title."""
    found: dict[str, str] = {}
    for part in parts:
        for written in (part.source.section("sources"), part.source.doc):
            for name in text.arxiv(written)[: 1 if work else 4]:
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
    return found


def all_verdicts(parts: Iterable[Built]) -> dict[str, int]:
    """Of several parts."""
    return total(part.verdicts for part in parts)
