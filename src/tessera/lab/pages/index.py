"""The index: a mosaic of all systems, their search and filters, and the list."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tessera import registry
from tessera.lab.catalog import STATUSES, Catalog, System, total
from tessera.lab.claim import VERDICTS
from tessera.lab.pages import layout
from tessera.lab.pages.text import escape, inline, words


def html(catalog: Catalog) -> str:
    """The page as a string."""
    built = [s for s in catalog.systems if s.parts]
    order = [*built, *(s for s in catalog.systems if not s.parts)]
    body = "\n".join(
        [
            _header(catalog, built),
            _mosaic(catalog),
            _problems(catalog.problems),
            _filters(catalog, built),
            f'<ol class="list" id="list">{"".join(_row(s) for s in order)}</ol>',
            '<p class="nothing" id="nothing" hidden>Nothing matches. <button type="button" data-clear>Clear all</button></p>',
            _others(catalog),
            _footer(),
        ]
    )
    css, script = f"{layout.FOLDER}/catalogue.css", f"{layout.FOLDER}/catalogue.js"
    return layout.page("Tessera catalogue", body, css=css, script=script, kind="index")


def _header(catalog: Catalog, built: Sequence[System]) -> str:
    surveys = sum(not s.work.system for s in catalog.systems)
    verdicts = total(part.verdicts for part, _ in catalog.parts())
    figures = [
        ("published entries", len(catalog.systems)),
        ("built as parts", len(built)),
        ("with fresh evidence", sum(s.status == "fresh" for s in built)),
        ("claims hold", verdicts.get("holds", 0)),
        ("hold in part", verdicts.get("partly", 0)),
        ("not reproduced", verdicts.get("not reproduced", 0)),
    ]
    if verdicts.get("crashed"):
        figures.append(("crashed", verdicts["crashed"]))
    cells = "".join(f"<div><dt>{name}</dt><dd>{value:,}</dd></div>" for name, value in figures)
    return (
        '<header><p class="over">Tessera</p><h1>The catalogue</h1>'
        f'<p class="lead">{len(catalog.systems) - surveys} published vision-language methods and {surveys} surveys. A method '
        "becomes a part; a part makes claims; a command runs them, and what it measured stands here, whether a claim holds or "
        "not.</p>"
        f'<dl class="figures">{cells}</dl></header>'
    )


def _mosaic(catalog: Catalog) -> str:
    counts = dict.fromkeys(layout.STANDINGS, 0)
    tiles = []
    for system in catalog.systems:
        how = layout.standing_of(system)
        counts[how] += 1
        old = " old" if system.status == "stale" else ""
        label = escape(f"{system.work.n} {system.work.name}: {layout.STANDINGS[how]}")
        href = f"{layout.FOLDER}/{layout.file_of(system.work)}"
        tiles.append(f'<a class="t-{how}{old}" href="{href}" title="{label}" tabindex="-1" data-n="{system.work.n}"></a>')
    legend = "".join(
        f'<li><i class="t-{how}"></i>{words_} <b>{counts[how]}</b></li>'
        for how, words_ in layout.STANDINGS.items()
        if counts[how]
    )
    if any(s.status == "stale" for s in catalog.systems):
        legend += '<li><i class="t-holds old"></i>stale evidence</li>'
    return f'<div class="mosaic" id="mosaic" aria-hidden="true">{"".join(tiles)}</div><ul class="keys">{legend}</ul>'


def _problems(problems: Sequence[str]) -> str:
    lines = "".join(f"<li>{inline(layout.local(p))}</li>" for p in problems)
    return f'<div class="empty problems"><b>Could not be read</b><ul>{lines}</ul></div>' if lines else ""


def _filters(catalog: Catalog, built: Sequence[System]) -> str:
    used = {part.source.socket for s in built for part in s.parts}
    verdicts = {verdict for s in built for verdict in s.verdicts}
    kinds = sorted({s.work.kind for s in catalog.systems})
    statuses = {s.status for s in catalog.systems}
    chosen = [
        _select("socket", "any socket", ((s, words(s)) for s in registry.SOCKETS if s in used)),
        _select("kind", "any kind", ((k, words(k)) for k in kinds)),
        _select("status", "any status", (("built", "built"), *((s, layout.STATUS[s]) for s in STATUSES if s in statuses))),
        _select("verdict", "any verdict", ((v, f"a claim {v}" if v == "holds" else v) for v in VERDICTS if v in verdicts)),
        _select("core", "any core", ((str(k), f"core {k}" + (" and above" if k < 5 else "")) for k in range(5, 0, -1))),
        _select("sort", "built first", (("n", "by number"), ("name", "by name"), ("core-down", "by core")), "order"),
    ]
    return (
        '<form class="filters" id="filters" role="search">'
        '<input type="search" id="q" name="q" placeholder="Search names, titles, kinds  ( / )" aria-label="Search" '
        f'autocomplete="off" spellcheck="false">'
        f'<p class="count"><button type="button" data-clear hidden>clear</button>'
        f'<output id="count" aria-live="polite">{len(catalog.systems)} entries</output></p>{"".join(chosen)}</form>'
    )


def _select(name: str, first: str, options: Iterable[tuple[str, str]], label: str = "") -> str:
    rows = "".join(f'<option value="{escape(value)}">{escape(said)}</option>' for value, said in options)
    return f'<select name="{name}" aria-label="{label or name}"><option value="">{first}</option>{rows}</select>'


def _row(system: System) -> str:
    work = system.work
    sockets = " ".join(dict.fromkeys(part.source.socket for part in system.parts))
    names = " ".join(part.source.name for part in system.parts)
    search = f"{work.n} {work.name} {work.title} {words(work.kind)} {words(sockets)} {names}".lower()
    data = {
        "n": work.n,
        "name": work.name.lower(),
        "kind": work.kind,
        "core": work.core,
        "socket": sockets,
        "status": system.status,
        "verdicts": ",".join(system.verdicts),
        "text": search,
    }
    attributes = " ".join(f'data-{key}="{escape(value)}"' for key, value in data.items())
    where = f'<span class="socket">{escape(words(sockets))}</span>' if sockets else ""
    status = (
        layout.badge(system.status) if system.parts else '<span class="status s-none">survey</span>' if not work.system else ""
    )
    title = f"<small>{escape(work.title)}</small>" if work.title != work.name else ""
    return (
        f'<li {attributes}><a href="{layout.FOLDER}/{layout.file_of(work)}"><span class="n">{work.n}</span>'
        f'<span class="what"><b>{escape(work.name)}</b>{title}</span>'
        f'<span class="kind">{escape(words(work.kind))}</span><span class="where">{where}</span>'
        f'<span class="proof">{layout.tiles(system.verdicts)}{status}</span></a></li>'
    )


def _others(catalog: Catalog) -> str:
    if not catalog.others:
        return ""
    rows = "".join(
        f'<li><a href="{layout.FOLDER}/{layout.file_of_part(part)}"><b>{escape(part.source.name)}</b>'
        f"<span>{escape(words(part.source.socket))}</span><small>{inline(part.source.title)}</small></a></li>"
        for part, work in catalog.parts()
        if work is None
    )
    hint = "Building blocks that stand for no single publication."
    return f'<section><h2>Parts without a number</h2><p class="hint">{hint}</p><ul class="others">{rows}</ul></section>'


def _footer() -> str:
    return (
        "<footer>Made by <code>tessera catalog --html</code> from the registry of parts and their evidence. What a method does "
        "that is not built is told in one sentence, from its publication.</footer>"
    )
