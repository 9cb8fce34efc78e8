"""A comparison as one HTML file that needs nothing else: the Pareto picture, the numbers, accuracy by question type."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from string import Template

from tessera.io import write_text
from tessera.lab.compare import Comparison, Row

_CSS = """
.pareto { height: 440px; margin-left: 52px; }
.pareto .dot { stroke-width: 11; stroke-linecap: round; stroke: var(--blind); }
.pareto .best { stroke: var(--accent); } .pareto .plain { stroke: var(--ink); }
.pareto .whisk { stroke: var(--faint); stroke-width: 1; }
.pareto .front { stroke: var(--accent-soft); stroke-width: 2; }
.pareto .name { color: var(--soft); font-size: 0.82rem; transform: translateY(-50%); }
.pareto .name.left { transform: translate(-100%, -50%); }
.pareto .name.good { color: var(--ink); font-weight: 600; }
.pareto .title { color: var(--soft); }
.heat th:not(:first-child), .heat td:not(:first-child) { text-align: right; padding-right: 8px; }
.heat td[style] { border-radius: 3px; }
.heat small { color: var(--faint); }
tr.plain td { color: var(--soft); }
td.good { font-weight: 600; color: var(--accent); }
"""


def write_page(path: str | Path, found: Comparison, command: str = "") -> Path:
    """Writes the page to `path`, whole or not at all. command: what to type to get the same."""
    write_text(path, page(found, command))
    return Path(path)


def page(found: Comparison, command: str = "") -> str:
    """The page as a string."""
    files = resources.files("tessera.evaluation")
    template = Template((files / "report.html").read_text(encoding="utf-8"))
    sections = (_pictures(found), _numbers(found), _by_type(found), _rest(found))
    again = f" The same again: <code>{html.escape(command)}</code>" if command else ""
    return template.substitute(
        version=html.escape(found.versions.get("tessera", "")),
        css=(files / "report.css").read_text(encoding="utf-8") + _CSS,
        over=f"Tessera comparison · {datetime.now(UTC):%d %B %Y}".replace("· 0", "· "),
        title=html.escape(f"{found.socket[:1].upper()}{found.socket[1:].replace('_', ' ')} on {found.on}"),
        lead=_lead(found),
        figures=_figures(found),
        sections="\n".join(section for section in sections if section),
        footer=f"The scenes are drawn, not photographed; what is measured here holds for them.{again}",
    )


def label(row: Row) -> str:
    """The contender's name, with its budget where there is one."""
    if row.budget is None:
        return row.name
    return f"{row.name} {row.budget:g}" if row.budget <= 1 else f"{row.name}, {row.budget:g} steps"


def _lead(found: Comparison) -> str:
    best = [label(row) for row in found.rows if row.best and row.how != "bare"]
    said = f"{len(found.rows) - 1} contenders answer the same {found.questions:,} questions about unseen scenes."
    if best:
        said += f" Nothing else is as accurate for as few operations as <b>{html.escape(', '.join(best))}</b>."
    return said


def _figures(found: Comparison) -> str:
    first = found.rows[0]
    half = 100 * (first.high - first.low) / 2
    shown = [
        ("accuracy of the plain model", f"{100 * first.accuracy:.1f} <small>± {half:.1f} %</small>"),
        ("GFLOPs of an answer", f"{first.flops / 1e9:.3g}"),
        ("milliseconds", f"{first.milliseconds:.3g}"),
        ("parameters", f"{first.parameters / 1e6:.1f} <small>M</small>"),
    ]
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in shown)


def _pictures(found: Comparison) -> str:
    flops = scatter(found.rows, lambda row: row.flops / 1e9, "GFLOPs of an answer")
    times = scatter(found.rows, lambda row: row.milliseconds, "milliseconds of an answer")
    hint = "Up is more often right, left is cheaper. Lines are 95 % intervals; the step line is the frontier: nothing is "
    hint += "better in both than what lies on it."
    return (
        f'<section><h2>What accuracy costs</h2><p class="hint">{hint}</p><h3>Counted operations</h3>{flops}'
        f"<h3>Measured time</h3>{times}</section>"
    )


def scatter(rows: Sequence[Row], cost: Callable[[Row], float], title: str) -> str:
    """Accuracy over a cost, one dot a contender; the axis of costs begins at 0 unless all are much alike."""
    costs = [cost(row) for row in rows]
    best = [
        row for row in rows if not any(cost(o) <= cost(row) and o.accuracy >= row.accuracy and _other(o, row, cost) for o in rows)
    ]
    width = max(costs) - min(costs)
    left = 0.0 if min(costs) < 0.6 * max(costs) else max(0.0, min(costs) - 0.35 * width - 0.02 * max(costs))
    right = max(costs) + 0.14 * (max(costs) - left) or 1.0
    top, bottom = max(row.high for row in rows), min(row.low for row in rows)
    step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 0.25) if (top - bottom) / s <= 7)
    low, high = math.floor(bottom / step) * step, math.ceil(top / step) * step
    high = max(high, low + step)
    ticks = [low + step * k for k in range(round((high - low) / step) + 1)]

    def at(x: float, y: float) -> tuple[float, float]:
        return 1000 * (x - left) / (right - left), 440 * (high - y) / (high - low)

    shapes = [f'<path class="grid" d="M0 {at(left, tick)[1]:.1f}H1000"/>' for tick in ticks]
    shapes.append(_front(sorted((cost(row), row.accuracy) for row in best), at))
    for row in rows:
        x, y = at(cost(row), row.accuracy)
        shapes.append(f'<path class="whisk" d="M{x:.1f} {at(left, row.high)[1]:.1f}V{at(left, row.low)[1]:.1f}"/>')
        css = "plain" if row.how == "bare" else "best" if row in best else ""
        shapes.append(f'<path class="dot {css}" d="M{x:.1f} {y:.1f}h0"/>')
    words = [f'<span class="y" style="top:{at(left, tick)[1] / 4.4:.2f}%">{100 * tick:.0f} %</span>' for tick in ticks]
    for tick in _round_ticks(left, right):
        words.append(f'<span class="x" style="left:{at(tick, 0)[0] / 10:.2f}%">{tick:g}</span>')
    words += _labels([(label(row), *at(cost(row), row.accuracy), row in best or row.how == "bare") for row in rows])
    said = "; ".join(f"{label(row)}: {100 * row.accuracy:.1f} % right, {cost(row):.3g} {title}" for row in rows)
    return (
        f'<div class="plot pareto" role="img" aria-label="{html.escape(said, quote=True)}">'
        f'<svg viewBox="0 0 1000 440" preserveAspectRatio="none" aria-hidden="true">{"".join(shapes)}</svg>{"".join(words)}</div>'
        f'<p class="hint">{html.escape(title)}</p>'
    )


def _front(points: Sequence[tuple[float, float]], at: Callable[[float, float], tuple[float, float]]) -> str:
    """The frontier from the cheapest to the dearest."""
    if len(points) < 2:
        return ""
    path, best = "", -1.0
    for x, y in points:
        if y <= best:
            continue
        a, b = at(x, y)
        path += f"M{a:.1f} {b:.1f}" if not path else f"H{a:.1f}V{b:.1f}"
        best = y
    return f'<path class="front" d="{path}"/>'


def _labels(named: Sequence[tuple[str, float, float, bool]]) -> list[str]:
    """Names beside their dots, where nothing else is written: to the right, to the left, then further down and up."""
    taken: list[tuple[float, float, float, float]] = [(x - 8, y - 8, x + 8, y + 8) for _, x, y, _ in named]
    found = []
    for text, x, y, good in sorted(named, key=lambda entry: -entry[3]):
        wide = 8.2 * len(text)
        places = [(side, shift) for shift in (0, 20, -20, 40, -40, 60, -60) for side in ("", "left")]
        for side, shift in places:
            left = x + 12 if not side else x - 12 - wide
            box = (left, y + shift - 9, left + wide, y + shift + 9)
            free = all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for t in taken)
            if free and left >= 0 and left + wide <= 1040 and 0 <= y + shift <= 440:
                break
        else:
            side, shift, box = "", 0, (x + 12, y - 9, x + 12 + wide, y + 9)
        taken.append(box)
        place = (x + 12 if not side else x - 12) / 10
        css = " ".join(word for word in ("name", side, "good" if good else "") if word)
        found.append(f'<span class="{css}" style="left:{place:.2f}%;top:{(y + shift) / 4.4:.2f}%">{html.escape(text)}</span>')
    return found


def _round_ticks(left: float, right: float) -> list[float]:
    rough = (right - left) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= rough)
    return [round(step * k, 12) for k in range(math.ceil(left / step), int(right / step) + 1)]


def _other(first: Row, second: Row, cost: Callable[[Row], float]) -> bool:
    return (cost(first), first.accuracy) != (cost(second), second.accuracy)


def _numbers(found: Comparison) -> str:
    head = ("", "right", "interval", "against none", "visual tokens", "GFLOPs", "times faster", "from – to", "ms", "parameters")
    rows = []
    for row in found.rows:
        against = "" if row.against is None else f"{100 * row.against.value:+.1f}"
        against += "" if row.against is None else f" ({100 * row.against.low:+.1f} to {100 * row.against.high:+.1f})"
        cells = [
            html.escape(label(row)),
            f"{100 * row.accuracy:.1f} %",
            f"{100 * row.low:.1f} – {100 * row.high:.1f}",
            against,
            "" if row.tokens is None else f"{row.tokens:.4g}",
            f"{row.flops / 1e9:.4g}",
            f"{row.time.median:.2f}",
            f"{row.time.low:.2f} – {row.time.high:.2f}",
            f"{row.milliseconds:.4g}",
            f"{row.parameters / 1e6:.2f} M",
        ]
        css = ' class="plain"' if row.how == "bare" else ""
        good = ' class="good"' if row.best and row.how != "bare" else ""
        rows.append(f"<tr{css}><td{good}>{cells[0]}</td>{''.join(f'<td>{cell}</td>' for cell in cells[1:])}</tr>")
    heads = "".join(f"<th>{name}</th>" for name in head)
    hint = f"Cost: {html.escape(found.shape)}; all in turns in one process. Blue names are on the frontier."
    return (
        f'<section><h2>All numbers</h2><p class="hint">{hint}</p><div class="scroll"><table class="numbers"><tr>{heads}</tr>'
        f"{''.join(rows)}</table></div></section>"
    )


def _by_type(found: Comparison) -> str:
    kinds = list(dict.fromkeys(kind for row in found.rows for kind in row.types))
    heads = "<th></th>" + "".join(f"<th>{html.escape(kind)}</th>" for kind in kinds)
    rows = []
    for row in found.rows:
        cells = []
        for kind in kinds:
            here = row.types.get(kind)
            if here is None:
                cells.append("<td></td>")
                continue
            half = 100 * (here.high - here.low) / 2
            share = round(62 * here.accuracy)
            cells.append(
                f'<td style="background:color-mix(in srgb, var(--accent-soft) {share}%, transparent)">'
                f"{100 * here.accuracy:.0f} <small>± {half:.0f}</small></td>"
            )
        css = ' class="plain"' if row.how == "bare" else ""
        rows.append(f"<tr{css}><td>{html.escape(label(row))}</td>{''.join(cells)}</tr>")
    hint = "Percent of right answers with half of the 95 % interval; a guess is right in half of the questions of existence."
    return (
        f'<section><h2>By question type</h2><p class="hint">{hint}</p><div class="scroll"><table class="heat"><tr>{heads}</tr>'
        f"{''.join(rows)}</table></div></section>"
    )


def _rest(found: Comparison) -> str:
    refused = "".join(f"<tr><td>{html.escape(n)}</td><td>{html.escape(why)}</td></tr>" for n, why in found.refused.items())
    parts = []
    if refused:
        table = f'<div class="scroll"><table class="facts">{refused}</table></div>'
        parts.append(f"<details open><summary>Could not take part<span>{len(found.refused)}</span></summary>{table}</details>")
    settings = {label(row): row.options for row in found.rows if row.options}
    facts = {"machine": found.machine, "versions": found.versions, "options": settings}
    plain = html.escape(json.dumps(facts, indent=2, ensure_ascii=False, default=str))
    parts.append(f"<details><summary>Settings</summary><pre>{plain}</pre></details>")
    everything = html.escape(json.dumps(asdict(found), indent=1, ensure_ascii=False, default=str))
    parts.append(f"<details><summary>As JSON</summary><pre>{everything}</pre></details>")
    return f"<section><h2>Settings</h2>{''.join(parts)}</section>"
