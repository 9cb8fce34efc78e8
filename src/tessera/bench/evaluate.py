"""Questions per second when several questions share an image, against the same questions one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from tessera.bench.subject import BenchSubject, load, scenes
from tessera.console import JsonOption, emit
from tessera.errors import TesseraError
from tessera.measure.sides import Ratio, interleaved, median, ratio

if TYPE_CHECKING:
    from rich.table import Table

TARGET = 3.0
"""Times more questions per second that sharing the image should give."""


@dataclass(slots=True, kw_only=True)
class EvaluateSpeed:
    """shared: all images are read in one batch, and all questions about them answered together; alone: one question after the
    other, each with its image. Seconds are medians for all questions; the answers are equal on both sides (anything else is
    an error). ratio: seconds alone over seconds shared; reached: whether its median is `TARGET` or more.
    """

    subject: BenchSubject
    images: int
    questions_per_image: int
    new_tokens: int
    rounds: int
    shared_seconds: float
    alone_seconds: float
    shared_questions_per_second: float
    alone_questions_per_second: float
    ratio: Ratio
    target: float
    reached: bool


def measure(model: str = "", images: int = 8, questions: int = 8, new_tokens: int = 4, rounds: int = 5) -> EvaluateSpeed:
    """Both sides run on our own decoder and start from pixel values. Raises `TesseraError` if the answers differ."""
    from tessera.generation.generate import Generator

    loaded, processor, subject = load(model)
    generator = Generator(loaded, processor)
    rows = [
        (processor.image_processor(drawn, return_tensors="pt")["pixel_values"], asked)
        for drawn, asked in scenes(images, questions, loaded.image_size)
    ]
    single = [(pixels, [question]) for pixels, asked in rows for question in asked]

    def shared() -> list[tuple[int, ...]]:
        return [a.tokens for answers in generator.answer_batch(rows, new_tokens) for a in answers]

    def alone() -> list[tuple[int, ...]]:
        return [a.tokens for row in single for answers in generator.answer_batch([row], new_tokens) for a in answers]

    if shared() != alone():
        raise TesseraError("sharing the image changed an answer.")
    seconds = interleaved({"shared": shared, "alone": alone}, rounds)
    found = ratio(seconds["alone"], seconds["shared"])
    return EvaluateSpeed(
        subject=subject,
        images=images,
        questions_per_image=questions,
        new_tokens=new_tokens,
        rounds=rounds,
        shared_seconds=median(seconds["shared"]),
        alone_seconds=median(seconds["alone"]),
        shared_questions_per_second=round(len(single) / median(seconds["shared"]), 1),
        alone_questions_per_second=round(len(single) / median(seconds["alone"]), 1),
        ratio=found,
        target=TARGET,
        reached=found.median >= TARGET,
    )


def evaluate(
    model: Annotated[str, typer.Option(help="nano or a folder; the nano shape with random weights by default.")] = "",
    images: Annotated[int, typer.Option(help="Images.", min=1)] = 8,
    questions: Annotated[int, typer.Option(help="Questions that share an image.", min=1, max=16)] = 8,
    new_tokens: Annotated[int, typer.Option(help="Tokens per answer at most.", min=1)] = 4,
    rounds: Annotated[int, typer.Option(help="Times that each side is measured.", min=1)] = 5,
    as_json: JsonOption = False,
) -> None:
    """Questions per second when eight questions share an image, against one by one."""
    emit(measure(model, images, questions, new_tokens, rounds), as_json, _table)


def _table(found: EvaluateSpeed) -> Table:
    from rich.table import Table

    subject = found.subject
    table = Table(
        title=f"{subject.model}, {subject.dtype}, {subject.threads} thread(s), {found.rounds} rounds",
        caption=f"{found.ratio.median:.2f} x ({found.ratio.low:.2f} to {found.ratio.high:.2f}); {found.target:g} x wanted.",
        title_justify="left",
        caption_justify="left",
        box=None,
    )
    for name in ("", "seconds", "questions per second"):
        table.add_column(name, justify="right" if name else "left")
    together = f"{found.questions_per_image} questions share an image"
    table.add_row(together, f"{found.shared_seconds:.3f}", f"{found.shared_questions_per_second:.1f}")
    table.add_row("one by one", f"{found.alone_seconds:.3f}", f"{found.alone_questions_per_second:.1f}")
    return table
