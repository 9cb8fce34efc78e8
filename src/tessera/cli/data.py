"""`tessera data`: checking data sets."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tessera.console import JsonOption, emit, note, progress

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tessera.data.check import CheckResult, Report

app = typer.Typer(no_args_is_help=True, add_completion=False)

_PATIENCE = 2.0
"""Seconds without a progress bar."""


@app.callback()
def data() -> None:
    """Check data sets before training on them."""


@app.command()
def check(
    path: Annotated[Path, typer.Argument(help="JSON lines, LLaVA JSON, Parquet, or a folder with one of these.")],
    images: Annotated[
        Path | None,
        typer.Option(help="The folder that paths of images start from; by default where PATH lies."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Rows with a longer text are errors (counted in words).", min=1)] = None,
    as_json: JsonOption = False,
) -> None:
    """Read every row, decode every image, and print what is wrong. Exit code 2 if there are errors."""
    from tessera.data.check import check

    with _patient_bar() as on_progress:
        report = check(path, images, max_tokens=max_tokens, on_progress=on_progress)
    emit(report, as_json, _render)
    missing = report.result("missing image").count
    if missing and missing == report.images and not as_json:
        note(f"no image was found in {report.images_folder}: name their folder with --images.")
    if not report.ok:
        raise typer.Exit(2)


@contextlib.contextmanager
def _patient_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar that shows up only when it takes long."""
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        bars = progress()
        task = bars.add_task("checking")

        def step(done: int, total: int) -> None:
            if time.monotonic() - started > _PATIENCE and not bars.live.is_started and not bars.disable:
                stack.enter_context(bars)
            bars.update(task, completed=done, total=total)

        yield step


def _render(report: Report) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(line) for line in _summary(report)]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("check", no_wrap=True)
    table.add_column("found", justify="right", no_wrap=True)
    table.add_column("first cases", overflow="fold")
    for result in report.findings:
        style = {"error": "red", "warning": "yellow"}[result.level] if result.count else "dim"
        count = f"{result.count:,}" if result.count else "none"
        if result.kind == "over-long" and report.limit is None:
            count = "no limit"
        table.add_row(Text(result.kind, style), Text(count, style), Text("\n".join(_cases(result))))
    parts += [Text(), table]
    seen = {label: count for label, count in report.sizes.items() if count}
    if seen:
        sizes = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        sizes.add_column("longer side, px", justify="right")
        sizes.add_column("images", justify="right")
        sizes.add_column("")
        for label, number in seen.items():
            bar = "#" * max(1, round(30 * number / max(seen.values())))
            sizes.add_row(Text(label), Text(f"{number:,}"), Text(bar, "dim"))
        parts += [Text(), sizes]
    return Group(*parts)


def _summary(report: Report) -> Iterator[str]:
    verdict = "no errors" if report.ok else f"{report.rows - report.good_rows:,} of them with errors"
    yield f"{report.path}: {report.rows:,} rows, {verdict}"
    if report.smallest_image and report.largest_image:
        (w, h), (most_w, most_h) = report.smallest_image, report.largest_image
        yield f"{report.images:,} images, {w} x {h} to {most_w} x {most_h} pixels"
    elif report.images:
        yield f"{report.images:,} images, none of them readable"
    yield f"{report.mean:.1f} {report.unit} per row, {report.longest:,} in the longest"


def _cases(result: CheckResult) -> Iterator[str]:
    for example in result.examples:
        yield f"{example.where}: {example.message}"
    if result.count > len(result.examples) > 0:
        yield f"... and {result.count - len(result.examples):,} more"
