"""What asking costs: with parts plugged in against without, our backends against transformers' generate(); same questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.bench.subject import BenchSubject, load, scenes
from tessera.console import JsonOption, emit
from tessera.errors import TesseraError, UserError, unknown
from tessera.measure.sides import Ratio, interleaved, median, ratio

if TYPE_CHECKING:
    from rich.table import Table

    from tessera.hosts.part import HostPart

TARGET = 1.3
"""Times longer that a plugged model may take, at the same number of tokens and with as many readings of an image."""
Side = Callable[[], list[list[tuple[int, ...]]]]


@dataclass(slots=True, kw_only=True)
class PluggedCase:
    """One part, all over the unplugged model's seconds.

    reads_question: whether images are read again with every question, because what the part does may depend on it
    shared, alone: with the setting that changes nothing, for questions that share an image and for those that have one each
    at_work: for questions that share an image, with the part's example setting (about half of the tokens, where it drops any)
    reached: whether the medians of `alone`, and of `shared` unless the part reads the question, are `TARGET` or less
    """

    part: str
    reads_question: bool
    shared: Ratio
    alone: Ratio
    at_work: Ratio
    reached: bool


@dataclass(slots=True, kw_only=True)
class AskSpeed:
    """Seconds are medians for all questions, from pixels to the last token.

    host_seconds: the loop for models of transformers, without parts; own_seconds: the packed decoder of our own small models;
    generate_seconds: `model.generate()` for one batch of all questions, each with its image
    own, generate: over the host's loop
    """

    subject: BenchSubject
    images: int
    questions_per_image: int
    new_tokens: int
    rounds: int
    host_seconds: float
    own_seconds: float
    generate_seconds: float
    own: Ratio
    generate: Ratio
    parts: list[PluggedCase]
    refused: dict[str, str]
    target: float
    reached: bool


def measure(
    model: str = "", parts: Sequence[str] = (), images: int = 4, questions: int = 4, new_tokens: int = 4, rounds: int = 5
) -> AskSpeed:
    """parts: names, all that the model can take by default. Raises `UserError` for unknown ones, and `TesseraError` if the tokens
    of two sides that should say the same differ."""
    from tessera.generation.generate import Generator
    from tessera.generation.host_generate import HostGenerator
    from tessera.hosts.check import host_parts

    loaded, processor, subject = load(model)
    loaded.float()
    rows = scenes(images, questions, loaded.image_size)
    single = [(drawn, [question]) for drawn, asked in rows for question in asked]
    host, own = HostGenerator(loaded, processor), Generator(loaded, processor)
    sides: dict[str, Side] = {
        "host": lambda: _tokens(host, rows, new_tokens),
        "own": lambda: _tokens(own, rows, new_tokens),
        "generate": _generated(loaded, processor, single, questions, new_tokens, own.ends),
    }
    said = {name: side() for name, side in sides.items()}
    for name in ("own", "generate"):
        if said[name] != said["host"]:
            raise TesseraError(f"the tokens of {name!r} differ from those of the loop for hosts.")
    seconds = interleaved(sides, rounds)
    known = host_parts()
    for name in parts:
        if name not in known:
            raise unknown("part that plugs in", name, known)
    cases: list[PluggedCase] = []
    refused: dict[str, str] = {}
    for name in parts or known:
        try:
            cases.append(_case(loaded, host, name, known[name][1], rows, single, new_tokens, rounds))
        except UserError as error:
            refused[name] = str(error)
    return AskSpeed(
        subject=subject,
        images=images,
        questions_per_image=questions,
        new_tokens=new_tokens,
        rounds=rounds,
        host_seconds=median(seconds["host"]),
        own_seconds=median(seconds["own"]),
        generate_seconds=median(seconds["generate"]),
        own=ratio(seconds["own"], seconds["host"]),
        generate=ratio(seconds["generate"], seconds["host"]),
        parts=cases,
        refused=refused,
        target=TARGET,
        reached=all(case.reached for case in cases),
    )


def _case(
    model: Any, host: Any, name: str, target: type[HostPart], rows: list[Any], single: list[Any], new_tokens: int, rounds: int
) -> PluggedCase:
    """One part. Raises `UserError` for one that the model cannot take, `TesseraError` if its identity changes a token."""
    import copy

    from tessera.config import build
    from tessera.generation.host_generate import HostGenerator
    from tessera.hosts.plug import attach

    twin = copy.deepcopy(model)  # stays plugged while the model itself is measured
    asked = HostGenerator(twin, host.processor)
    taken: dict[str, list[float]] = {}
    for options, measured in (
        (target.identity(), {"shared": rows, "alone": single}),
        (target.example(attach(model).layer_count), {"at work": rows}),
    ):
        with attach(twin).plug(target(build(target.Config, options, name))):
            for side, work in measured.items():
                plain, plugged = partial(_tokens, host, work, new_tokens), partial(_tokens, asked, work, new_tokens)
                if side != "at work" and plain() != plugged():
                    raise TesseraError(f"{name} with the setting that changes nothing changed a token.")
                taken |= interleaved({f"{side}, plain": plain, side: plugged}, rounds)
    found = {side: ratio(taken[side], taken[f"{side}, plain"]) for side in ("shared", "alone", "at work")}
    return PluggedCase(
        part=name,
        reads_question=target.reads_question,
        shared=found["shared"],
        alone=found["alone"],
        at_work=found["at work"],
        reached=found["alone"].median <= TARGET and (target.reads_question or found["shared"].median <= TARGET),
    )


def _tokens(generator: Any, rows: list[Any], new_tokens: int) -> list[list[tuple[int, ...]]]:
    return [[answer.tokens for answer in answers] for answers in generator.answer_batch(rows, new_tokens)]


def _generated(model: Any, processor: Any, single: list[Any], questions: int, new_tokens: int, ends: frozenset[int]) -> Side:
    """The side of transformers: one left-padded batch of all questions."""
    drawn = [images for images, _ in single]
    texts = [processor.prompt(asked[0], len(images)) for images, asked in single]

    def generate() -> list[list[tuple[int, ...]]]:
        inputs = processor(images=drawn, text=texts, return_tensors="pt", padding=True, padding_side="left")
        out = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        rows = []
        for row in out.tolist():
            end = next((place for place, token in enumerate(row) if token in ends), len(row))
            rows.append(tuple(row[:end]))
        return [rows[begin : begin + questions] for begin in range(0, len(rows), questions)]

    return generate


def ask(
    model: Annotated[str, typer.Option(help="nano or a folder; the nano shape with random weights by default.")] = "",
    plug: Annotated[list[str] | None, typer.Option(help="A part, several times for several; all by default.")] = None,
    images: Annotated[int, typer.Option(help="Images.", min=1)] = 4,
    questions: Annotated[int, typer.Option(help="Questions that share an image.", min=1, max=16)] = 4,
    new_tokens: Annotated[int, typer.Option(help="Tokens per answer at most.", min=1)] = 4,
    rounds: Annotated[int, typer.Option(help="Times that each side is measured.", min=1)] = 5,
    as_json: JsonOption = False,
) -> None:
    """What parts cost when questions are asked, and our backends against transformers' generate()."""
    emit(measure(model, plug or (), images, questions, new_tokens, rounds), as_json, _table)


def _table(found: AskSpeed) -> Table:
    from rich.table import Table

    subject = found.subject
    table = Table(
        title=f"{subject.model}, float32, {subject.threads} thread(s), {found.rounds} rounds: {found.images} images, "
        f"{found.questions_per_image} questions each",
        caption=f"Times the unplugged model's {found.host_seconds:.3f} s; {found.target:g} or less wanted of settings that "
        f"change nothing.\nUnplugged: our packed decoder {found.own.median:.2f} ({found.own_seconds:.3f} s), "
        f"transformers' generate() {found.generate.median:.2f} ({found.generate_seconds:.3f} s). "
        "A part that reads the question has every image read again with every question.",
        title_justify="left",
        caption_justify="left",
        box=None,
    )
    for name in ("part", "image shared", "image each", "at work, shared", "reads the question"):
        table.add_column(name, justify="left" if name == "part" else "right")
    for case in found.parts:
        numbers = (f"{r.median:.2f} ({r.low:.2f}-{r.high:.2f})" for r in (case.shared, case.alone, case.at_work))
        table.add_row(case.part, *numbers, "yes" if case.reads_question else "")
    return table
