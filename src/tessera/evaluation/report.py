"""The report of a run: one HTML file that needs nothing else, with pictures, curves, numbers and settings."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from tessera.config import to_dict
from tessera.evaluation import charts, pictures
from tessera.evaluation.result import Result, TypeResult
from tessera.evaluation.shown import RULE, shown
from tessera.io import write_text


@dataclass(slots=True, kw_only=True)
class Run:
    """What is known of the run that a result belongs to; everything may be missing.

    title, about: its name and a sentence; log: its log.jsonl; recipe: its settings, plain data or a config; durations: seconds by
    what took them; peak_memory: bytes; command: what to type to get the same.
    """

    title: str = ""
    about: str = ""
    log: Path | None = None
    recipe: Any = None
    durations: Mapping[str, float] = field(default_factory=dict)
    peak_memory: int | None = None
    command: str = ""


def write_report(path: str | Path, result: Result, run: Run | None = None, blind: Result | None = None) -> Path:
    """Writes the report to `path`, whole or not at all; `blind` is the same evaluation without the images."""
    write_text(path, report_html(result, run, blind))
    return Path(path)


def report_html(result: Result, run: Run | None = None, blind: Result | None = None) -> str:
    """The report as a string. Raises `UserError` when `blind` answers other questions than `result`."""
    run = run or Run()
    if blind is not None:
        result = result.with_blind(blind)
    files = resources.files("tessera.evaluation")
    page = Template((files / "report.html").read_text(encoding="utf-8"))
    sections = (_shown(result), _abilities(result), _learning(run), _examples(result), _settings(result, run))
    return page.substitute(
        version=html.escape(result.versions.get("tessera", "")),
        css=(files / "report.css").read_text(encoding="utf-8"),
        over=f"Tessera report · {datetime.now(UTC):%d %B %Y}".replace("· 0", "· "),
        title=html.escape(run.title or result.model),
        lead=_lead(result, run),
        figures=_figures(result, run),
        sections="\n".join(sections),
        footer=_footer(run),
    )


def read_log(path: Path | None) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training steps, evaluations) of a log.jsonl, in order; lines that are no records (a torn last one) are passed over."""
    steps: list[dict[str, Any]] = []
    evaluations: list[dict[str, Any]] = []
    if path is None or not path.is_file():
        return steps, evaluations
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            (evaluations if "evaluation" in record else steps).append(record)
    return steps, evaluations


def _lead(result: Result, run: Run) -> str:
    parts = [html.escape(run.about)] if run.about else []
    how = ", asked without the images," if result.without_images else ""
    said = (
        f"It answers <b>{_share(result.accuracy)}</b> of {result.n:,} questions about {result.samples:,} unseen scenes right{how}"
        f" as a mean over {len(result.types)} question types"
    )
    if result.blind is not None:
        gained = round(100 * (result.accuracy - result.blind))
        said += f"; without the images it is {_share(result.blind)}, so <b>{gained} points</b> come from seeing"
    return " ".join([*parts, said + "."])


def _figures(result: Result, run: Run) -> str:
    half = 100 * (result.high - result.low) / 2
    found = [("mean accuracy", f"{100 * result.accuracy:.1f} <small>± {half:.1f} %</small>")]
    if result.blind is not None:
        found.append(("without the images", f"{100 * result.blind:.1f} <small>%</small>"))
    found.append(("parameters", f"{result.parameters / 1e6:.1f} <small>M</small>"))
    if "training" in run.durations:
        value, unit = _duration(run.durations["training"]).split()
        found.append(("training", f"{value} <small>{unit}</small>"))
    found.append(("questions a second", f"{result.n / max(1e-9, result.seconds):,.0f}"))
    if run.peak_memory:
        found.append(("peak memory", f"{run.peak_memory / 2**30:.1f} <small>GiB</small>"))
    return "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in found)


def _shown(result: Result) -> str:
    """The two answers that `tessera run` ends with."""
    chosen = shown(result)
    if not chosen:
        return ""
    drawn = pictures.draw(result, chosen)
    return f'<section><h2>Learned and not learned</h2><p class="hint">{RULE}</p><div class="cards">{drawn}</div></section>'


def _abilities(result: Result) -> str:
    blind = any(t.blind is not None for t in result.types.values())
    doubts = not all(t.sees for t in result.types.values())
    keys = [
        ("bar", "right answers"),
        ("whisker", "95 % interval"),
        *([("blind", "the same questions without the images")] if blind else []),
        ("chance", "a guess among the answers that the question names"),
        ("most", "always the most frequent answer"),
    ]
    legend = "".join(f'<li><i class="{css}"></i>{text}</li>' for css, text in keys)
    hint = "Every type is asked equally often. "
    if doubts:
        hint += "A hatched bar is not surely above what can be guessed without seeing."
    ticks = "".join(f"<u>{t} %</u>" for t in (0, 25, 50, 75, 100))
    return (
        f'<section><h2>What it can do</h2><p class="hint">{hint}</p><ul class="legend">{legend}</ul>'
        f'<div class="bars">{charts.bars(result)}</div><div class="axis"><span>{ticks}</span></div></section>'
    )


def _learning(run: Run) -> str:
    steps, evaluations = read_log(run.log)
    losses = [(r["step"], r["loss"]) for r in steps if isinstance(r.get("loss"), (int, float))]
    drawn = ""
    if len(losses) > 1:
        marks = [
            charts.Mark(x=r["step"], text=str(r["stage"]))
            for before, r in zip([{}, *steps[:-1]], steps, strict=True)
            if r.get("stage") and r.get("stage") != before.get("stage")
        ]
        positive = min(y for _, y in losses) > 0
        curve = charts.line_chart(
            [charts.Series(points=losses, css="raw"), charts.Series(points=charts.smooth(losses))],
            about=f"Training loss over {losses[-1][0]} steps, from {losses[0][1]:.2f} to {charts.smooth(losses)[-1][1]:.2f}.",
            marks=marks,
            log=positive and max(y for _, y in losses) > 4 * min(y for _, y in losses),
        )
        drawn += f"<div><h3>Loss over steps</h3>{curve}</div>"
    for name in dict.fromkeys(k for r in evaluations for k in r["evaluation"] if "/" not in k):
        points = [(r["step"], r["evaluation"][name]) for r in evaluations if _is_share(r["evaluation"].get(name))]
        if len(points) > 1:
            title = html.escape(name.replace("_", " "))
            about = f"{name} over steps, {points[-1][1]:.2f} at the end."
            curve = charts.line_chart([charts.Series(points=points)], about=about, percent=True)
            drawn += f"<div><h3>{title[:1].upper()}{title[1:]} over steps</h3>{curve}</div>"
    return f'<section><h2>How it learned</h2><div class="charts">{drawn}</div></section>' if drawn else ""


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _examples(result: Result) -> str:
    groups = []
    for right, title in ((True, "Right"), (False, "Wrong")):
        cards = pictures.cards(result, right)
        if cards:
            groups.append(f'<h3>{title}</h3><div class="cards">{cards}</div>')
    if not groups:
        return ""
    hint = (
        "Drawn at random from the scenes that it was measured on, in more pixels than it saw. "
        "In questions about boxes the solid line is the true box, the dashed one the answer."
    )
    return f'<section><h2>What it says</h2><p class="hint">{hint}</p>{"".join(groups)}</section>'


def _settings(result: Result, run: Run) -> str:
    world = result.config.get("world", {})
    facts = {
        "model": result.model,
        "weights": result.weights,
        "questions": f"{result.items}, world version {result.world_version}, split {world.get('split', '?')}",
        "machine": result.machine,
        **{name: _duration(seconds) for name, seconds in run.durations.items()},
        "peak memory": f"{run.peak_memory / 2**20:,.0f} MiB" if run.peak_memory else "",
    }
    parts = [
        _details("Run", _table(facts), result.weights),
        _details("All numbers", _numbers(result), f"{len(result.types)} types"),
        _details("Versions", _table(result.versions), f"Tessera {result.versions.get('tessera', '')}"),
    ]
    if run.recipe is not None:
        parts.append(_details("Recipe", _pre(to_dict(run.recipe))))
    parts.append(_details("Evaluation", _pre(result.config)))
    return f"<section><h2>Settings</h2>{''.join(parts)}</section>"


def _numbers(result: Result) -> str:
    head = ("type", "questions", "right", "interval", "blind", "seeing adds", "chance", "most frequent", "by form")
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in _cells(name, t))}</tr>" for name, t in result.types.items())
    heads = "".join(f"<th>{h}</th>" for h in head)
    return f'<div class="scroll"><table class="numbers"><tr>{heads}</tr>{rows}</table></div>'


def _cells(name: str, t: TypeResult) -> list[str]:
    gain = "" if t.gain is None else f"{100 * t.gain.value:+.0f} ({100 * t.gain.low:+.0f} to {100 * t.gain.high:+.0f})"
    forms = ", ".join(f"{form} {_share(s.accuracy)}" for form, s in t.forms.items())
    overlap = "" if t.iou is None else f", mean IoU {t.iou:.2f}"
    return [
        html.escape(name),
        str(t.n),
        f"{100 * t.accuracy:.1f} %",
        f"{100 * t.low:.1f} – {100 * t.high:.1f}",
        "" if t.blind is None else f"{100 * t.blind:.1f} %",
        gain,
        f"{100 * t.chance:.1f} %",
        f"{100 * t.majority:.1f} %",
        html.escape(forms) + overlap,
    ]


def _details(title: str, body: str, note: str = "") -> str:
    return f"<details><summary>{html.escape(title)}<span>{html.escape(note)}</span></summary>{body}</details>"


def _table(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items() if v not in ("", None)
    )
    return f'<div class="scroll"><table class="facts">{rows}</table></div>'


def _pre(value: Any) -> str:
    return f"<pre>{html.escape(json.dumps(value, indent=2, ensure_ascii=False, default=str))}</pre>"


def _footer(run: Run) -> str:
    again = f" The same numbers again: <code>{html.escape(run.command)}</code>" if run.command else ""
    return f"The scenes are drawn, not photographed; what is measured here holds for them.{again}"


def _share(value: float) -> str:
    return f"{100 * value:.0f} %"


def _duration(seconds: float) -> str:
    """ "8.2 s", "41 s", "3:34 min", "2:05 h"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02} h"
    return f"{minutes}:{rest:02} min" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"
