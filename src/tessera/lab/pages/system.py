"""The page of one system, or of a part without a catalogue number."""

from __future__ import annotations

from tessera.lab.catalog import Built, Work
from tessera.lab.evidence import Entry, Evidence
from tessera.lab.pages import layout
from tessera.lab.pages.plot import plots
from tessera.lab.pages.text import capital, citation, escape, facts, inline, prose, seconds, table, words
from tessera.lab.source import Option, Source, Stated

KINDS = {"exact": "identity or parity", "effect": "measured on the world", "cost": "tokens, FLOPs, time"}
STALE = "The part, the lab, the world or a reference model has changed since these numbers were measured."


def html(work: Work | None, parts: tuple[Built, ...], before: tuple[str, str] | None, after: tuple[str, str] | None) -> str:
    """The page as a string. before, after: (file, name) of the neighbours in the catalogue."""
    name = work.name if work else parts[0].source.name
    sections = [_built(part, first=part is parts[0], alone=len(parts) == 1) for part in parts] or [_missing(work)]
    body = "\n".join([_header(work, parts), *sections, _neighbours(before, after)])
    return layout.page(f"{name} · Tessera catalogue", body, css="catalogue.css", script="catalogue.js", kind="system")


def _header(work: Work | None, parts: tuple[Built, ...]) -> str:
    sockets = dict.fromkeys(part.source.socket for part in parts)
    trail = ['<a href="../index.html">Catalogue</a>']
    trail += [f'<a href="../index.html#socket={escape(socket)}">{escape(words(socket))}</a>' for socket in sockets]
    if work is None:
        source = parts[0].source
        name, lead = source.name, inline(source.title + ".") if source.title else ""
        shown = [("socket", escape(words(source.socket)))]
    else:
        name, lead = work.name, escape(work.title)
        core = "".join(f'<i class="{"on" if k < work.core else ""}"></i>' for k in range(5))
        shown = [
            ("number", str(work.n)),
            ("kind", escape(words(work.kind))),
            ("core", f'<span class="core" role="img" aria-label="{work.core} of 5">{core}</span>'),
        ]
        if parts:
            shown.append(("part", "".join(f"<code>{escape(part.key)}</code> " for part in parts)))
    statuses = dict.fromkeys(part.status for part in parts) or {"none": None}
    shown.append(("evidence", " ".join(layout.badge(status) for status in statuses)))
    if verdicts := layout.all_verdicts(parts):
        shown.append(("claims", layout.tiles(verdicts)))
    cells = "".join(f"<div><dt>{term}</dt><dd>{value}</dd></div>" for term, value in shown)
    links = layout.links(work, parts)
    return (
        f'<header><nav class="trail">{"<span>/</span>".join(trail)}</nav><h1>{escape(name)}</h1>'
        + (f'<p class="lead">{lead}</p>' if lead and lead != escape(name) else "")
        + (f'<p class="links">{links}</p>' if links else "")
        + f'<dl class="strip">{cells}</dl></header>'
    )


def _missing(work: Work | None) -> str:
    """What is said of a system that nobody has built here."""
    if work is None or not work.system:
        said = "<p>A survey: it orders a field and describes no single method, so there is nothing to build.</p>"
    else:
        said = "<p>No part implements this method yet. <code>CONTRIBUTING.md</code> says how to add one.</p>"
    about = f"<p>{escape(work.about)}</p>" if work and work.about else ""
    return f'<section><h2>What it does</h2><div class="prose">{about}</div><div class="empty">{said}</div></section>'


def _built(part: Built, *, first: bool, alone: bool) -> str:
    source = part.source
    cited, said = citation(source.section("sources"))
    does = "\n\n".join(text for text in (source.section("what"), said) if text)
    found = [
        "" if alone else f"<section><h2 class=part><code>{escape(part.key)}</code> {layout.badge(part.status)}</h2></section>",
        _section(
            "What it does",
            prose(capital(does) or "The part's file does not say.")
            + (f'<div class="cite">{prose(cited)}</div>' if cited else ""),
        ),
        _section("Deviations", prose(capital(source.section("deviations")))),
        _settings(source),
        _claims(part, "" if first else f"{part.source.name}."),
        _again(part),
    ]
    return "\n".join(piece for piece in found if piece)


def _section(title: str, body: str) -> str:
    return f'<section><h2>{title}</h2><div class="prose">{body}</div></section>' if body else ""


def _settings(source: Source) -> str:
    shapes = prose(capital(source.section("shapes")))
    options = _options(source.options or ())
    inside = "".join(
        f"<details><summary>{title}<span>{note}</span></summary>{body}</details>"
        for title, note, body in (
            ("Options", f"{len(source.options or ())}", options),
            ("Shapes", "", f'<div class="prose small">{shapes}</div>' if shapes else ""),
        )
        if body
    )
    return f'<section class="folds">{inside}</section>' if inside else ""


def _options(options: tuple[Option, ...]) -> str:
    rows = [
        [f"<code>{escape(o.name)}</code>", f"<code>{escape(o.type)}</code>", f"<code>{escape(o.default)}</code>"] for o in options
    ]
    return table(("name", "type", "default"), rows) if rows else ""


def _claims(part: Built, prefix: str) -> str:
    """prefix: of the claims' anchors, which stand on the page once."""
    abouts = {claim.id: claim for claim in part.source.claims}
    drawn = "".join(_entry(c, abouts.get(c.id), prefix) if isinstance(c, Entry) else _unrun(c, prefix) for c in part.claims())
    if part.problem:
        drawn = f'<div class="empty"><p>{inline(layout.local(part.problem))}</p></div>{drawn}'
    elif part.status == "stale":
        drawn = f'<p class="hint warn">{STALE} They may no longer hold.</p>{drawn}'
    if not drawn:
        drawn = '<div class="empty"><p>This part makes no claims.</p></div>'
    return f"<section><h2>Claims</h2>{drawn}</section>"


def _entry(entry: Entry, stated: Stated | None, prefix: str) -> str:
    seeds = ", ".join(map(str, entry.seeds))
    meta = [
        f"<span>{_kind(entry.kind)}</span>",
        f"<span>{escape(entry.paper)}</span>" if entry.paper else "",
        f"<span>seed{'s' if len(entry.seeds) != 1 else ''} {seeds}</span>" if seeds else "",
        f"<span>{escape(entry.shape)}</span>" if entry.shape else "",
        f"<span>took {seconds(entry.seconds)}</span>",
    ]
    checks = "".join(f'<li class="{"met" if met else "unmet"}">{escape(check)}</li>' for check, met in entry.checks.items())
    about = f'<div class="prose">{prose(stated.about)}</div>' if stated and stated.about else ""
    return (
        f'<article class="claim {layout.css(entry.verdict)}" id="{escape(prefix + entry.id)}">'
        f'<header><h3>{inline(entry.title)}</h3><b class="verdict">{escape(entry.verdict)}</b></header>'
        f'<p class="meta">{"".join(meta)}</p>{about}'
        + (f'<ul class="checks">{checks}</ul>' if checks else "")
        + plots(entry)
        + (f'<p class="note">{inline(entry.note)}</p>' if entry.note else "")
        + "</article>"
    )


def _unrun(claim: Stated, prefix: str) -> str:
    about = f'<div class="prose">{prose(claim.about)}</div>' if claim.about else ""
    return (
        f'<article class="claim unrun" id="{escape(prefix + claim.id)}"><header><h3>{inline(claim.title)}</h3>'
        f'<b class="verdict">not run yet</b></header><p class="meta"><span>{_kind(claim.kind)}</span>'
        + (f"<span>{escape(claim.paper)}</span>" if claim.paper else "")
        + f"</p>{about}</article>"
    )


def _kind(kind: str) -> str:
    return f"{escape(kind)}: {KINDS[kind]}" if kind in KINDS else escape(kind)


def _again(part: Built) -> str:
    if not part.source.claims and part.evidence is None:
        return ""
    command = f"tessera verify {part.source.name}"
    button = f'<button type="button" data-copy="{escape(command)}">Copy</button>'
    code = f'<pre class="command"><code>{escape(command)}</code>{button}</pre>'
    title = "Reproduce" if part.evidence is not None else "Run"
    return f"<section><h2>{title}</h2>{code}{_provenance(part.evidence) if part.evidence else ''}</section>"


def _provenance(found: Evidence) -> str:
    return facts(
        {
            "took": seconds(sum(entry.seconds for entry in found.claims)),
            "machine": escape(found.machine),
            "versions": escape(", ".join(f"{name} {version}" for name, version in found.versions.items())),
            "hashes": " ".join(
                f"<span class=hash>{escape(name)} <code>{escape(value)}</code></span>" for name, value in found.hashes.items()
            ),
        }
    )


def _neighbours(before: tuple[str, str] | None, after: tuple[str, str] | None) -> str:
    left = f'<a rel="prev" href="{before[0]}">← {escape(before[1])}</a>' if before else "<span></span>"
    right = f'<a rel="next" href="{after[0]}">{escape(after[1])} →</a>' if after else "<span></span>"
    return f'<footer class="neighbours">{left}{right}</footer>'
