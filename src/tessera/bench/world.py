"""How fast the world draws scenes and asks questions, on one core, and whether that is enough for training."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from tessera.console import JsonOption, emit
from tessera.errors import UserError

if TYPE_CHECKING:
    from rich.table import Table

ENOUGH = 4.0
"""Times the training's own rate that the world should give, so that data never limits it."""
_WARM = 200


@dataclass(slots=True, kw_only=True)
class WorldSpeed:
    """Rates of one core that draws every frame and asks every question, in images and questions per second.

    images_alone: without questions; memory: the most bytes that this process held, drawn artwork that is kept included.
    training: images per second that training takes on all `cores`, if it was given; ratio: what `cores` such cores give for
    every image of it; enough: whether that is at least `ENOUGH`.
    """

    size: int
    samples: int
    seconds: float
    images: float
    questions: float
    images_alone: float
    memory: int | None
    cores: int
    training: float | None = None
    ratio: float | None = None
    enough: bool | None = None


def measure(seconds: float = 5.0, size: int = 112, training: float | None = None) -> WorldSpeed:
    """Draws samples of the default mixture at `size` pixels for `seconds`, after some to warm the sprites up.

    training: images per second of a training run on this machine, to compare with. Raises `UserError` for values out of range.
    """
    from tessera.evaluation.provenance import peak_memory
    from tessera.world import World

    if seconds <= 0 or (training is not None and training <= 0):
        raise UserError("seconds and the training rate must be above 0.")
    world = World(width=size, height=size)
    for index in range(_WARM):
        sample = world[index]
        sample.images()
        sample.questions()
    drawing = asking = 0.0
    index, images, questions = _WARM, 0, 0
    while drawing + asking < seconds:
        begin = time.perf_counter()
        sample = world[index]
        images += len(sample.images())
        middle = time.perf_counter()
        questions += len(sample.questions())
        drawing, asking = drawing + middle - begin, asking + time.perf_counter() - middle
        index += 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    rate = round(images / (drawing + asking), 1)  # what is shown, so that the ratio beside it follows from it
    ratio = None if training is None else rate * cores / training
    return WorldSpeed(
        size=size,
        samples=index - _WARM,
        seconds=round(drawing + asking, 3),
        images=rate,
        questions=round(questions / (drawing + asking), 1),
        images_alone=round(images / drawing, 1),
        memory=peak_memory(),
        cores=cores,
        training=training,
        ratio=None if ratio is None else round(ratio, 2),
        enough=None if ratio is None else ratio >= ENOUGH,
    )


def world(
    seconds: Annotated[float, typer.Option(help="How long to measure.")] = 5.0,
    size: Annotated[int, typer.Option(help="Side of the images in pixels.")] = 112,
    training: Annotated[
        float | None, typer.Option(help="Images per second of a training run on this machine, to compare with.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Images and questions per second of the built-in world on one core."""
    emit(measure(seconds, size, training), as_json, _table)


def _table(found: WorldSpeed) -> Table:
    from rich.table import Table

    table = Table("", "", box=None, show_header=False, pad_edge=False)
    table.add_row("images with all questions", f"{found.images:,.0f} per second and core ({found.size} pixels)")
    table.add_row("questions", f"{found.questions:,.0f} per second and core")
    table.add_row("images alone", f"{found.images_alone:,.0f} per second and core")
    if found.memory is not None:
        table.add_row("memory", f"{found.memory / 2**20:,.0f} MiB at most")
    if found.ratio is not None:
        verdict = "enough" if found.enough else "too slow"
        table.add_row("against training", f"{found.ratio:.1f} x on {found.cores} cores, {ENOUGH:g} x wanted: {verdict}")
    return table
