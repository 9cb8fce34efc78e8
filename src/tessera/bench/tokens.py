"""Parts that drop visual tokens: the time of a prefill against what counted FLOPs promise, and what hooks cost that do nothing.

The host is shaped like LLaVA (a class token, 24 x 24 patches, a tower of about a twentieth of the language model's size), with
random weights: which tokens stay is meaningless, what it costs is not.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.console import JsonOption, emit
from tessera.measure.counting import flops
from tessera.measure.llava import Shape, host, inputs
from tessera.measure.sides import Ratio, interleaved, median, ratio

if TYPE_CHECKING:
    from rich.table import Table

SHARE = 0.8
"""Of what the FLOP ratio promises, the measured ratio should be at least this share."""
OVERHEAD = 1.05
"""With identity settings a prefill should take at most this many times as long as the plain one."""
DIGITS = 3
"""Of ratios: an overhead of a percent must be seen."""
PARTS: Mapping[str, dict[str, Any]] = {"pyramiddrop": {}, "fopru": {"keep": 0.25}, "aim": {}}
"""What is measured, with its options."""


@dataclass(slots=True, kw_only=True)
class PartCase:
    """One part. Ratios are the plain host's over the plugged one's; both read one image and one prompt, pixels to first logits.

    tokens: entering each decoder layer; promised: the ratio of counted FLOPs (matrix products, convolutions, attention, the
    part's own ones included); measured: that of seconds, round by round; share: measured over promised; reached: whether it
    is `SHARE` or more.
    """

    part: str
    options: dict[str, Any]
    tokens: list[int]
    gflops: float
    seconds: float
    promised: float
    measured: Ratio
    share: float
    reached: bool


@dataclass(slots=True, kw_only=True)
class Idle:
    """One part with its identity setting. overhead: seconds over the plain host's; reached: whether it is at most `OVERHEAD`."""

    part: str
    options: dict[str, Any]
    overhead: Ratio
    reached: bool


@dataclass(slots=True, kw_only=True)
class TokenSpeed:
    """All parts on one host; seconds are medians over the rounds."""

    shape: Shape
    parameters: int
    visual_tokens: int
    gflops: float
    seconds: float
    rounds: int
    cases: list[PartCase]
    idle: list[Idle]
    reached: bool
    threads: int
    dtype: str
    versions: dict[str, str]
    machine: str
    targets: dict[str, float] = field(default_factory=lambda: {"share": SHARE, "overhead": OVERHEAD})


def measure(shape: Shape | None = None, rounds: int = 9) -> TokenSpeed:
    """Times the plain host, each part and each part's identity in turns, in one process, on modules that share their weights."""
    import torch

    from tessera.evaluation import provenance

    shape = shape or Shape()
    model = host(shape)
    prompt = inputs(shape)
    with ExitStack() as stack, torch.inference_mode():
        sides: dict[str, Callable[[], Any]] = {"plain": _side(model, prompt)}
        tokens, idle = {}, {}
        for name, options in PARTS.items():
            plugged = _plugged(stack, model, name, options)
            sides[name] = _side(plugged.model, prompt)
            idle[name] = plugged.parts[0].identity()
            sides[f"{name}, idle"] = _side(_plugged(stack, model, name, idle[name]).model, prompt)
            sides[name]()
            tokens[name] = [stage.index.shape[1] for stage in plugged.sequence.stages]
        counted = {side: flops(work) for side, work in sides.items()}
        taken = interleaved(sides, rounds)
    cases = []
    for name, options in PARTS.items():
        promised, measured = counted["plain"] / counted[name], ratio(taken["plain"], taken[name], DIGITS)
        cases.append(
            PartCase(
                part=name,
                options=options,
                tokens=tokens[name],
                gflops=round(counted[name] / 1e9, 2),
                seconds=median(taken[name]),
                promised=round(promised, 3),
                measured=measured,
                share=round(measured.median / promised, 3),
                reached=measured.median >= SHARE * promised,
            )
        )
    idles = []
    for name, options in idle.items():
        overhead = ratio(taken[f"{name}, idle"], taken["plain"], DIGITS)
        idles.append(Idle(part=name, options=options, overhead=overhead, reached=overhead.median <= OVERHEAD))
    return TokenSpeed(
        shape=shape,
        parameters=provenance.parameter_count(model),
        visual_tokens=shape.patches**2,
        gflops=round(counted["plain"] / 1e9, 2),
        seconds=median(taken["plain"]),
        rounds=rounds,
        cases=cases,
        idle=idles,
        reached=all(c.reached for c in cases) and all(i.reached for i in idles),
        threads=torch.get_num_threads(),
        dtype=str(model.dtype).removeprefix("torch."),
        versions=provenance.versions(),
        machine=provenance.machine(),
    )


def _side(model: Any, prompt: Mapping[str, Any]) -> Callable[[], Any]:
    return lambda: model(**prompt, use_cache=True, logits_to_keep=1)


def _plugged(stack: ExitStack, model: Any, name: str, options: Mapping[str, Any]) -> Any:
    """A host with one part on a copy of the model that shares its weights."""
    from tessera.hosts.plug import plug

    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return stack.enter_context(plug(copy.deepcopy(model, shared), name, **options))


def tokens(
    rounds: Annotated[int, typer.Option(help="Times that each side is measured.", min=1)] = 9,
    layers: Annotated[int, typer.Option(help="Decoder layers.", min=4)] = 12,
    width: Annotated[int, typer.Option(help="Width of the language model, a multiple of 64.", min=64)] = 512,
    as_json: JsonOption = False,
) -> None:
    """Parts that drop visual tokens: measured time of a prefill against what counted FLOPs promise."""
    from tessera.errors import UserError

    if width % 64:
        raise UserError(f"--width is a multiple of 64, not {width}.")
    shape = Shape(layers=layers, width=width, heads=width // 64, intermediate=width * 11 // 4)
    emit(measure(shape, rounds), as_json, _table)


def _table(found: TokenSpeed) -> Table:
    from rich.table import Table

    shape = found.shape
    table = Table(
        title=f"{shape.layers} layers of width {shape.width}, {found.visual_tokens} visual tokens, {shape.text_tokens} of text, "
        f"{found.threads} thread(s), {found.rounds} rounds",
        caption=f"Ratios of the plain host's prefill to the plugged one's, from pixels; at least {SHARE:.0%} of the promised one "
        f"is wanted, and at most {OVERHEAD:g} times the unplugged time when nothing is dropped (idle).",
        title_justify="left",
        caption_justify="left",
        box=None,
    )
    for name in ("part", "GFLOP", "ms", "promised", "measured", "from", "to", "share", "idle"):
        table.add_column(name, justify="left" if name == "part" else "right")
    table.add_row("(unplugged)", f"{found.gflops:.1f}", f"{found.seconds * 1e3:.0f}")
    for case, idle in zip(found.cases, found.idle, strict=True):
        table.add_row(
            case.part,
            f"{case.gflops:.1f}",
            f"{case.seconds * 1e3:.0f}",
            f"{case.promised:.2f}",
            f"{case.measured.median:.2f}",
            f"{case.measured.low:.2f}",
            f"{case.measured.high:.2f}",
            f"{case.share:.2f}",
            f"{idle.overhead.median:.3f}",
        )
    return table
