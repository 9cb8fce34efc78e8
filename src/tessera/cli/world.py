"""`tessera world`: looking at the built-in world."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.console import JsonOption, emit, note

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def world() -> None:
    """Look at the built-in world."""


@app.command()
def look(
    split: Annotated[str, typer.Option(help="train, val or test.")] = "train",
    index: Annotated[int, typer.Option(help="The first sample.")] = 0,
    size: Annotated[int, typer.Option(help="Side of the images in pixels, 64 to 2048.")] = 112,
    kind: Annotated[str, typer.Option(help="scene, text, chart, pair or clip; a mixture by default.")] = "",
    count: Annotated[int, typer.Option(help="Samples on the sheet.", min=1, max=64)] = 6,
    seed: Annotated[int, typer.Option(help="Another world of the same kind.")] = 0,
    pool: Annotated[str, typer.Option(help="Concepts: base, novel, everyday or all.")] = "base",
    plain: Annotated[bool, typer.Option("--plain", help="Pictures only, nothing drawn in.")] = False,
    out: Annotated[Path, typer.Option(help="The PNG file to write.")] = Path("world.png"),
    as_json: JsonOption = False,
) -> None:
    """Write a contact sheet with the ground truth drawn in, and print the questions about the samples."""
    from tessera.io import atomic_write
    from tessera.world import World, WorldConfig
    from tessera.world.look import contact_sheet

    drawn = World(WorldConfig(split=split, seed=seed, width=size, height=size, pool=pool))
    samples = [drawn.sample(i, kind or None) for i in range(index, index + count)]
    sheet = contact_sheet(samples, truth=not plain)
    with atomic_write(out) as temporary:
        sheet.save(temporary, format="PNG")
    found = {"sheet": str(out), "samples": [_described(s) for s in samples]}
    emit(found, as_json, _render)
    note(f"written: {out} ({sheet.width} x {sheet.height} pixels)")


def _described(sample: Any) -> dict[str, Any]:
    from tessera.config import to_dict

    return {
        "index": sample.index,
        "kind": sample.kind,
        "frames": len(sample.frames),
        "captions": sample.captions(),
        "questions": [{**to_dict(q), "query": dict(q.query)} for q in sample.questions()],
    }


def _render(found: dict[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = []
    for sample in found["samples"]:
        frames = f", {sample['frames']} frames" if sample["frames"] > 1 else ""
        parts.append(Text(f"\n{sample['kind']} {sample['index']}{frames}", style="bold"))
        parts.append(Text(sample["captions"]["short"], style="italic"))
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for question in sample["questions"]:
            table.add_row(Text(question["type"], style="dim"), question["text"], Text(question["answer"], style="bold"))
        parts.append(Padding(table, (0, 0, 0, 2)))
    return Group(*parts)
