"""Our greedy decoding against `model.generate()` of transformers, on the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.bench.sides import Ratio, interleaved, median, ratio
from tessera.bench.subject import Subject, load, scenes
from tessera.cli.common import JsonOption, emit
from tessera.errors import TesseraError

if TYPE_CHECKING:
    from rich.table import Table

TARGET = 2.0
"""Times faster than `model.generate()` that decoding should be, at every batch size."""
BATCHES = (1, 16)


@dataclass(slots=True, kw_only=True)
class Case:
    """One batch size: questions answered together, one image each. Seconds are medians of a whole call.

    tokens: generated in one call, equal on both sides (anything else is an error); ratio: transformers' seconds over ours.
    """

    batch: int
    tokens: int
    ours_seconds: float
    transformers_seconds: float
    ratio: Ratio


@dataclass(slots=True, kw_only=True)
class GenerateSpeed:
    """Both sides start from pixel values, ours from the questions' text, transformers from their token ids; `new_tokens` is the
    limit on an answer. reached: whether the median ratio is `TARGET` or more at every batch size."""

    subject: Subject
    new_tokens: int
    rounds: int
    cases: list[Case]
    target: float
    reached: bool


def measure(
    model: str = "", new_tokens: int = 32, rounds: int = 7, batches: Sequence[int] = BATCHES
) -> GenerateSpeed:
    """Times whole calls, from pixels and questions to tokens, in turns. Raises `TesseraError` if the tokens differ."""
    loaded, processor, subject = load(model)
    cases = [case(loaded, processor, batch, new_tokens, rounds) for batch in batches]
    return GenerateSpeed(
        subject=subject,
        new_tokens=new_tokens,
        rounds=rounds,
        cases=cases,
        target=TARGET,
        reached=all(c.ratio.median >= TARGET for c in cases),
    )


def case(model: Any, processor: Any, batch: int, new_tokens: int, rounds: int) -> Case:
    """One batch size; see `measure`."""
    ours, theirs = sides(model, processor, batch, new_tokens)
    mine, expected = ours(), theirs()
    for row, (a, b) in enumerate(zip(mine, expected, strict=True)):
        if a != b:
            raise TesseraError(
                f"the two sides generated different tokens for row {row} of {batch}: {list(a)} is ours, {list(b)} transformers'."
            )
    seconds = interleaved({"ours": ours, "transformers": theirs}, rounds)
    return Case(
        batch=batch,
        tokens=sum(map(len, mine)),
        ours_seconds=median(seconds["ours"]),
        transformers_seconds=median(seconds["transformers"]),
        ratio=ratio(seconds["transformers"], seconds["ours"]),
    )


Side = Callable[[], list[tuple[int, ...]]]


def sides(model: Any, processor: Any, batch: int, new_tokens: int) -> tuple[Side, Side]:
    """(ours, transformers'): functions that give the tokens of every row, without the end."""
    from tessera.hosts.generate import Generator

    generator = Generator(model, processor)
    rows = scenes(batch, 1, model.image_size)
    texts = [processor.prompt(questions[0]) for _, questions in rows]
    pixels = [processor.image_processor(images, return_tensors="pt")["pixel_values"] for images, _ in rows]
    prepared = [(p, questions) for p, (_, questions) in zip(pixels, rows, strict=True)]
    inputs = processor(
        images=[images for images, _ in rows], text=texts, return_tensors="pt", padding=True, padding_side="left"
    )
    length = inputs["input_ids"].shape[1]

    def ours() -> list[tuple[int, ...]]:
        return [answers[0].tokens for answers in generator.answer_batch(prepared, new_tokens)]

    def theirs() -> list[tuple[int, ...]]:
        out = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        return [_until_end(row, generator.ends) for row in out[:, length:].tolist()]

    return ours, theirs


def _until_end(tokens: list[int], ends: frozenset[int]) -> tuple[int, ...]:
    end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return tuple(tokens[:end])


def generate(
    model: Annotated[str, typer.Option(help="nano or a folder; the nano shape with random weights by default.")] = "",
    new_tokens: Annotated[int, typer.Option(help="Tokens per answer at most.", min=1)] = 32,
    rounds: Annotated[int, typer.Option(help="Times that each side is measured.", min=1)] = 7,
    as_json: JsonOption = False,
) -> None:
    """Our greedy decoding against transformers' model.generate(): same weights, same tokens, in turns."""
    emit(measure(model, new_tokens, rounds), as_json, _table)


def _table(found: GenerateSpeed) -> Table:
    from rich.table import Table

    subject = found.subject
    table = Table(
        title=f"{subject.model}, {subject.dtype}, {subject.threads} thread(s), {found.rounds} rounds",
        caption=f"Seconds of a whole call, from pixels to at most {found.new_tokens} tokens per answer; {found.target:g} x wanted.",
        title_justify="left",
        caption_justify="left",
        box=None,
    )
    for name in ("batch", "tokens", "ours", "transformers", "ratio", "from", "to"):
        table.add_column(name, justify="right")
    for c in found.cases:
        table.add_row(
            str(c.batch),
            str(c.tokens),
            f"{c.ours_seconds:.3f}",
            f"{c.transformers_seconds:.3f}",
            f"{c.ratio.median:.2f}",
            f"{c.ratio.low:.2f}",
            f"{c.ratio.high:.2f}",
        )
    return table
