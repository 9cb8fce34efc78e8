"""Our greedy decoding against `model.generate()` of transformers, on the same weights: our own model, and hosts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.bench.hosts import SHAPES, HostCase, QuestionsCase, host_case, questions_case
from tessera.bench.subject import BenchSubject, load, scenes
from tessera.console import JsonOption, emit
from tessera.errors import TesseraError
from tessera.measure.sides import Ratio, interleaved, median, ratio

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

TARGET = 2.0
"""Times faster than `model.generate()` that decoding should be, at every batch size."""
BATCHES = (1, 16)


@dataclass(slots=True, kw_only=True)
class BatchCase:
    """One batch size: questions answered together, one image each. Seconds are medians of a call.

    tokens: generated in one call, equal on both sides (anything else is an error); ratio: transformers' seconds over ours, both
    from the same image features to the last token; with_images: the same from pixels, where both sides first spend
    the same time in the vision towers.
    """

    batch: int
    tokens: int
    ours_seconds: float
    transformers_seconds: float
    ratio: Ratio
    with_images: Ratio


@dataclass(slots=True, kw_only=True)
class GenerateSpeed:
    """Ours starts from the questions' text, transformers from token ids made before; `new_tokens` is the limit on an answer.

    hosts and questions are other models, of transformers; empty and None where they were not asked for. reached: whether the
    median of every ratio is its target or more (`TARGET` at every batch size).
    """

    subject: BenchSubject
    new_tokens: int
    rounds: int
    cases: list[BatchCase]
    target: float
    hosts: list[HostCase]
    questions: QuestionsCase | None
    reached: bool


def measure(
    model: str = "", new_tokens: int = 64, rounds: int = 7, batches: Sequence[int] = BATCHES, hosts: bool | None = None
) -> GenerateSpeed:
    """Times both sides in turns; `hosts`: models of transformers too, by default if no model is named.

    Raises `TesseraError` if the tokens differ.
    """
    hosts = not model if hosts is None else hosts
    loaded, processor, subject = load(model)
    cases = [case(loaded, processor, batch, new_tokens, rounds) for batch in batches]
    found = [host_case(shape, new_tokens, rounds) for shape in SHAPES] if hosts else []
    questions = questions_case(rounds) if hosts else None
    return GenerateSpeed(
        subject=subject,
        new_tokens=new_tokens,
        rounds=rounds,
        cases=cases,
        target=TARGET,
        hosts=found,
        questions=questions,
        reached=all(c.ratio.median >= TARGET for c in cases)
        and all(c.reached for c in found)
        and (questions is None or questions.reached),
    )


def case(model: Any, processor: Any, batch: int, new_tokens: int, rounds: int) -> BatchCase:
    """One batch size; see `measure`."""
    found = []
    for from_pixels in (False, True):
        ours, theirs = sides(model, processor, batch, new_tokens, from_pixels)
        mine, expected = ours(), theirs()
        for row, (a, b) in enumerate(zip(mine, expected, strict=True)):
            if a != b:
                raise TesseraError(f"the tokens of row {row} of {batch} differ: {list(a)} are ours, {list(b)} transformers'.")
        found.append(interleaved({"ours": ours, "transformers": theirs}, rounds))
    decoding, whole = found
    return BatchCase(
        batch=batch,
        tokens=sum(map(len, mine)),
        ours_seconds=median(decoding["ours"]),
        transformers_seconds=median(decoding["transformers"]),
        ratio=ratio(decoding["transformers"], decoding["ours"]),
        with_images=ratio(whole["transformers"], whole["ours"]),
    )


Side = Callable[[], list[tuple[int, ...]]]


def sides(model: Any, processor: Any, batch: int, new_tokens: int, from_pixels: bool) -> tuple[Side, Side]:
    """(ours, transformers'): functions that give the tokens of every row, without the end."""
    import torch

    from tessera.generation.generate import Generator

    generator = Generator(model, processor)
    rows = scenes(batch, 1, model.image_size)
    texts = [processor.prompt(questions[0]) for _, questions in rows]
    inputs = processor(images=[images for images, _ in rows], text=texts, return_tensors="pt", padding=True, padding_side="left")
    images = inputs["pixel_values"]
    if not from_pixels:
        with torch.inference_mode():
            images = inputs["image_features"] = model.get_image_features(inputs.pop("pixel_values"))
    prepared = [(own, questions) for own, (_, questions) in zip(images.split(1), rows, strict=True)]
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
    new_tokens: Annotated[int, typer.Option(help="Tokens per answer at most.", min=1)] = 64,
    rounds: Annotated[int, typer.Option(help="Times that each side is measured.", min=1)] = 7,
    hosts: Annotated[
        bool | None,
        typer.Option(
            "--hosts/--no-hosts", help="Models of transformers too; by default if no model is named.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Our greedy decoding against transformers' model.generate(): same weights, same tokens, in turns."""
    emit(measure(model, new_tokens, rounds, hosts=hosts), as_json, _tables)


def _tables(found: GenerateSpeed) -> RenderableType:
    from rich.console import Group

    return Group(_table(found), *([_hosts(found)] if found.hosts else []))


def _hosts(found: GenerateSpeed) -> Table:
    from rich.table import Table

    caption = "Seconds from pixels to the last token, batch 1; slow: the model's own forward computes the tokens."
    if (shared := found.questions) is not None:
        caption += (
            f"\n{shared.questions} questions about one image of {shared.image_tokens} tokens: {shared.ratio.median:.2f} x one by "
            f"one ({shared.target:g} x wanted), {shared.against_batch.median:.2f} x one batch."
        )
    table = Table(title="Models of transformers", caption=caption, title_justify="left", caption_justify="left", box=None)
    for name in ("family", "shape", "ours", "transformers", "ratio", "from", "to", "wanted", "way"):
        table.add_column(name, justify="left" if name in ("family", "shape", "way") else "right")
    for c in found.hosts:
        table.add_row(
            c.family,
            c.shape.partition(":")[0],
            f"{c.ours_seconds:.3f}",
            f"{c.transformers_seconds:.3f}",
            f"{c.ratio.median:.2f}",
            f"{c.ratio.low:.2f}",
            f"{c.ratio.high:.2f}",
            f"{c.target:g}",
            "own" if c.why_slow is None else "slow",
        )
    return table


def _table(found: GenerateSpeed) -> Table:
    from rich.table import Table

    subject = found.subject
    table = Table(
        title=f"{subject.model}, {subject.dtype}, {subject.threads} thread(s), {found.rounds} rounds",
        caption=f"Seconds from image features to at most {found.new_tokens} tokens per answer, {found.target:g} x wanted; "
        "with images: from pixels, vision towers included.",
        title_justify="left",
        caption_justify="left",
        box=None,
    )
    for name in ("batch", "tokens", "ours", "transformers", "ratio", "from", "to", "with images"):
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
            f"{c.with_images.median:.2f}",
        )
    return table
