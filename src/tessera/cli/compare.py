"""`tessera compare`: all parts of a socket under one budget."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tessera.console import JsonOption, emit, note, progress
from tessera.errors import UserError, unknown

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tessera.lab.compare.comparison import Comparison


def compare(
    socket: Annotated[str, typer.Argument(help="tokens, connectors, couplings, decoding ...: see `tessera list`.")],
    names: Annotated[list[str] | None, typer.Argument(help="Only these of its parts.", show_default=False)] = None,
    on: Annotated[str, typer.Option(help="nano, or the folder of a vision-language model.")] = "nano",
    budget: Annotated[
        str, typer.Option(help="Shares of the visual tokens (0.25, or 0.5,0.25), or above 1: steps of training.")
    ] = "",
    n: Annotated[int, typer.Option("--n", help="Questions that every contender answers.", min=1)] = 400,
    rounds: Annotated[int, typer.Option(help="Times that each contender's cost is measured, in turns.", min=1)] = 5,
    html: Annotated[Path | None, typer.Option("--html", help="Write the Pareto picture and all numbers to this file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the parts of a socket: accuracy per question type with intervals, tokens, FLOPs, time, parameters.

    Parts that are plugged in are compared on the model as it is; parts that a composed model is built of take the place of the
    reference model's own, and all are trained for as many steps. What was measured before is not measured again, but for time.
    """
    from tessera import registry

    if socket not in registry.SOCKETS:
        raise unknown("socket", socket, registry.SOCKETS)
    shares, steps = parse_budget(budget)
    from tessera.lab.compare import compare as compared
    from tessera.lab.local_lab import LocalLab
    from tessera.lab.storage import cache_folder, tidy

    with progress() as bars:
        task = bars.add_task("comparing", total=None)
        found = compared(
            LocalLab(),
            socket,
            names or (),
            on=on,
            n=n,
            rounds=rounds,
            on_step=lambda what: bars.update(task, description=what),
            budgets=shares or (0.25,),
            steps=steps or 150,
        )
    tidy(cache_folder())
    if html is not None:
        from tessera.lab.compare.page import write_page

        words = ["tessera compare", socket, *(names or []), *([f"--budget {budget}"] if budget else [])]
        note(f"written: {write_page(html, found, ' '.join([*words, f'--n {n}', f'--html {html.name}']))}")
    emit(found, as_json, _table)


def parse_budget(text: str) -> tuple[tuple[float, ...], int]:
    """ "0.5,0.25" -> ((0.5, 0.25), 0); "200" -> ((), 200); "" -> ((), 0). Raises `UserError` for anything else."""
    if not text:
        return (), 0
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if len(values) == 1 and values[0] > 1 and values[0].is_integer():
        return (), int(values[0])
    if values and all(0 < value <= 1 for value in values):
        return tuple(values), 0
    raise UserError(
        f"--budget {text}: give shares of the visual tokens above 0, at most 1 (0.25, or 0.5,0.25), or a number of steps."
    )


def _table(found: Comparison) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from tessera.lab.compare.table import HEADS, cells, kinds, label, of_kind

    def table(heads: Sequence[str]) -> Table:
        made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        made.add_column("", no_wrap=True)
        for head in heads:
            made.add_column(head, justify="right")
        return made

    numbers, types = table(HEADS), kinds(found)
    by_type = table(types)
    for row in found.rows:
        style = "bold cyan" if row.best else "cyan" if row.how != "bare" else ""
        numbers.add_row(Text(label(row), style=style), *cells(row))
        by_type.add_row(Text(label(row)), *(" ".join(of_kind(row.types[kind])) if kind in row.types else "" for kind in types))
    end = [
        f"{found.socket} on {found.on}: {found.questions} questions; cost: {found.shape}.",
        "Bold: on the frontier of accuracy and FLOPs.",
        *(f"{name} could not take part: {why}" for name, why in found.refused.items()),
    ]
    return Group(numbers, by_type, Text("\n".join(end), style="dim"))
