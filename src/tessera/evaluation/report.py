"""The report of a run: one HTML file that needs nothing else, with pictures, curves, numbers and settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup

from tessera.config import to_dict
from tessera.evaluation import charts, pictures
from tessera.evaluation.pages import environment, share, style, today
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
    examples = [(title, pictures.cards(result, right)) for right, title in ((True, "Right"), (False, "Wrong"))]
    chosen = shown(result)
    return (
        environment()
        .get_template("report.html")
        .render(
            version=result.versions.get("tessera", ""),
            css=style(),
            date=today(),
            title=run.title or result.model,
            about=run.about,
            command=run.command,
            result=result,
            gained=None if result.blind is None else round(100 * (result.accuracy - result.blind)),
            figures=_figures(result, run),
            rule=RULE,
            shown=pictures.draw(result, chosen) if chosen else "",
            blind=any(t.blind is not None for t in result.types.values()),
            doubts=not all(t.sees for t in result.types.values()),
            bars=charts.bars(result),
            curves=_curves(run),
            examples=[(title, cards) for title, cards in examples if cards],
            ran=_ran(result, run),
            numbers=[_cells(name, t) for name, t in result.types.items()],
            recipe=None if run.recipe is None else to_dict(run.recipe),
        )
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


def _figures(result: Result, run: Run) -> list[tuple[str, str, str]]:
    """(what, number, unit) of each number at the head of the page."""
    half = 100 * (result.high - result.low) / 2
    found = [("mean accuracy", f"{100 * result.accuracy:.1f}", f"± {half:.1f} %")]
    if result.blind is not None:
        found.append(("without the images", f"{100 * result.blind:.1f}", "%"))
    found.append(("parameters", f"{result.parameters / 1e6:.1f}", "M"))
    if "training" in run.durations:
        value, unit = _duration(run.durations["training"]).split()
        found.append(("training", value, unit))
    found.append(("questions a second", f"{result.n / max(1e-9, result.seconds):,.0f}", ""))
    if run.peak_memory:
        found.append(("peak memory", f"{run.peak_memory / 2**30:.1f}", "GiB"))
    return found


def _curves(run: Run) -> list[tuple[str, Markup]]:
    """(title, chart) of the loss and of every measure that the log has over steps."""
    steps, evaluations = read_log(run.log)
    losses = [(r["step"], r["loss"]) for r in steps if isinstance(r.get("loss"), (int, float))]
    drawn = []
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
        drawn.append(("Loss over steps", curve))
    for name in dict.fromkeys(k for r in evaluations for k in r["evaluation"] if "/" not in k):
        points = [(r["step"], r["evaluation"][name]) for r in evaluations if _is_share(r["evaluation"].get(name))]
        if len(points) > 1:
            title = name.replace("_", " ")
            about = f"{name} over steps, {points[-1][1]:.2f} at the end."
            curve = charts.line_chart([charts.Series(points=points)], about=about, percent=True)
            drawn.append((f"{title[:1].upper()}{title[1:]} over steps", curve))
    return drawn


def _is_share(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def _ran(result: Result, run: Run) -> dict[str, str]:
    """What was run, with what, for how long; empty words are left out of the page."""
    world = result.config.get("world", {})
    return {
        "model": result.model,
        "weights": result.weights,
        "questions": f"{result.items}, world version {result.world_version}, split {world.get('split', '?')}",
        "machine": result.machine,
        **{name: _duration(seconds) for name, seconds in run.durations.items()},
        "peak memory": f"{run.peak_memory / 2**20:,.0f} MiB" if run.peak_memory else "",
    }


def _cells(name: str, t: TypeResult) -> list[str]:
    gain = "" if t.gain is None else f"{100 * t.gain.value:+.0f} ({100 * t.gain.low:+.0f} to {100 * t.gain.high:+.0f})"
    forms = ", ".join(f"{form} {share(s.accuracy)}" for form, s in t.forms.items())
    overlap = "" if t.iou is None else f", mean IoU {t.iou:.2f}"
    return [
        name,
        str(t.n),
        f"{100 * t.accuracy:.1f} %",
        f"{100 * t.low:.1f} – {100 * t.high:.1f}",
        "" if t.blind is None else f"{100 * t.blind:.1f} %",
        gain,
        f"{100 * t.chance:.1f} %",
        f"{100 * t.majority:.1f} %",
        forms + overlap,
    ]


def _duration(seconds: float) -> str:
    """ "8.2 s", "41 s", "3:34 min", "2:05 h"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minutes:02} h"
    return f"{minutes}:{rest:02} min" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"
