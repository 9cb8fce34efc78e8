"""The page of one system, or of a part without a catalogue number."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tessera.lab.catalog import Built
from tessera.lab.evidence import Evidence
from tessera.lab.pages import layout, text
from tessera.lab.pages.claim import ClaimView, view
from tessera.lab.pages.markdown import inline, prose
from tessera.lab.source import Option
from tessera.lab.works import Work

Neighbour = tuple[str, str]
"""(file, name)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part as its page shows it. `facts`: term -> value of its evidence, {} without one."""

    key: str
    status: str
    does: Markup
    cited: Markup
    deviations: Markup
    shapes: Markup
    options: Sequence[Option]
    about: Markup
    problem: Markup
    claims: Sequence[ClaimView]
    command: str
    facts: dict[str, str]


def html(work: Work | None, parts: Sequence[Built], before: Neighbour | None, after: Neighbour | None) -> str:
    """The page. before, after: the neighbours in the catalogue."""
    if work is not None:
        name, lead = work.name, Markup("{}").format(work.title)
    else:
        source = parts[0].source
        name, lead = source.name, inline(source.title + ".") if source.title else Markup()
    verdicts = layout.all_verdicts(parts)
    return layout.render(
        "system.html",
        title=f"{name} · Tessera catalogue",
        root="",
        kind="system",
        work=work,
        name=name,
        lead="" if lead == name else lead,
        sockets=list(dict.fromkeys(part.source.socket for part in parts)),
        keys=[part.key for part in parts],
        links=layout.links(work, parts),
        statuses=list(dict.fromkeys(part.status for part in parts)) or ["none"],
        verdicts=verdicts,
        drawn=layout.tiles(verdicts),
        parts=[_section(part, "" if k == 0 else f"{part.source.name}.") for k, part in enumerate(parts)],
        before=before,
        after=after,
    )


def _section(part: Built, prefix: str) -> Section:
    source = part.source
    cited, said = text.citation(source.section("sources"))
    does = "\n\n".join(piece for piece in (source.section("what"), said) if piece)
    return Section(
        key=part.key,
        status=part.status,
        does=prose(text.capital(does) or "The part's file does not say."),
        cited=prose(cited),
        deviations=prose(text.capital(source.section("deviations"))),
        shapes=prose(text.capital(source.section("shapes"))),
        options=source.options or (),
        about=prose(part.about),
        problem=inline(layout.local(part.problem)),
        claims=[_claim(part, k, prefix) for k in range(len(part.results()))],
        command=f"tessera verify {source.name}" if part.claims or part.evidence is not None else "",
        facts={} if part.evidence is None else _facts(part.evidence),
    )


def _claim(part: Built, place: int, prefix: str) -> ClaimView:
    claim, entry = part.results()[place]
    reasons = part.reasons.get(claim.id, []) if claim is not None else []
    return view(claim, entry, reasons, prefix)


def _facts(found: Evidence) -> dict[str, str]:
    """What the numbers were made with."""
    machines = ", ".join(dict.fromkeys(entry.machine for entry in found.claims if entry.machine))
    depends = dict(pair for entry in found.claims for pair in entry.depends.items())
    facts = {
        "took": text.seconds(sum(entry.seconds for entry in found.claims)),
        "machine": machines,
        "libraries": ", ".join(f"{name} {version}" for name, version in found.versions.items()),
        "measured with": ", ".join(f"{name} {version}" for name, version in depends.items()),
    }
    return {term: value for term, value in facts.items() if value}
