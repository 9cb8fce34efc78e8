"""All parts of a socket under one budget: accuracy per question type, tokens, FLOPs, measured time, parameters.

    found = compare(LocalLab(), "tokens", budgets=(0.25,))
    for row in found.rows: print(row.name, row.accuracy, row.flops, row.time.median)

`ring` says how parts take part, `runs` keeps accuracies on disk; times are measured anew, all contenders in turns. `table` writes
the numbers for people, `page` draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from tessera import registry
from tessera.errors import UserError
from tessera.evaluation import provenance
from tessera.lab.compare.comparison import Comparison, Contender, Kind
from tessera.lab.compare.ring import ANSWER, Entrant, Ring, way_of
from tessera.lab.compare.runs import difference
from tessera.measure.sides import interleaved, ratio

if TYPE_CHECKING:
    from tessera.lab.local_lab import LocalLab

__all__ = ["Comparison", "Contender", "Kind", "compare"]

SEEING = ("existence", "count", "relation", "position", "size", "attribute", "category", "at")
"""Question types about single scenes that need the picture."""
OnStep = Callable[[str], object]


def compare(
    lab: LocalLab,
    socket: str,
    names: Sequence[str] = (),
    *,
    on: str = "nano",
    budgets: Sequence[float] = (0.25,),
    steps: int = 150,
    n: int = 400,
    rounds: int = 5,
    types: Sequence[str] = SEEING,
    on_step: OnStep = lambda what: None,
) -> Comparison:
    """Compares the parts of `socket`, or the named ones, on the model `on`, on `n` questions of `types`.

    budgets: shares of the visual tokens for parts that say how they meet one; steps: of training for parts of composed models.
    Raises `UserError` for unknown names, a budget out of range, and a socket whose parts answer no questions.
    """
    from tessera.models import reference

    for budget in budgets:
        if not 0 < budget <= 1:
            raise UserError(f"a budget is a share of the visual tokens above 0, at most 1, not {budget:g}.")
    parts = [registry.get(socket, name) for name in names or registry.names(socket)]
    ways = {part.name: way_of(part) for part in parts}
    if not names and any(way == "plugged" for way in ways.values()):
        parts = [part for part in parts if ways[part.name] != "trained"]  # those that are built in are asked for by name
    if not any(ways.values()):
        raise UserError(
            f"the parts of socket {socket!r} answer no questions, so they cannot be compared on a model. {_other(socket)}"
        )
    model, processor = lab.reference(on) if on in reference.REFERENCES else reference.load(on)
    if not hasattr(model, "generate"):
        raise UserError(f"{on} answers no questions; compare parts on nano, or on a vision-language model's folder.")
    refused: dict[str, str] = {}
    with ExitStack() as stack:
        ring = Ring(lab, model, processor, on, n, tuple(types), stack)
        contenders = [ring.plain_model(size) for size in [_size(ways[part.name] for part in parts)]]
        for part in parts:
            on_step(part.name)
            try:
                contenders += ring.enter(part, ways[part.name], budgets, steps)
            except UserError as error:
                refused[part.name] = str(error)
        on_step("time and FLOPs")
        rows = _measured(lab, contenders, rounds)
    return Comparison(
        socket=socket,
        on=on,
        budgets=tuple(budgets),
        questions=n,
        rows=rows,
        refused=refused,
        shape=f"one image and a short question, {ANSWER} tokens of answer, {lab.shape()}",
        machine=provenance.machine(),
        versions=provenance.versions(),
    )


def _size(ways: Iterable[str]) -> int:
    """How many times larger the pictures are than what the model reads: parts around a model look closer."""
    return 3 if "around" in set(ways) else 1


def _other(socket: str) -> str:
    shown = registry.names(socket)[:3]
    return f"Their claims say what they do: tessera verify {' '.join(shown)}" if shown else f"No part fills {socket!r} yet."


def _measured(lab: LocalLab, contenders: Sequence[Entrant], rounds: int) -> list[Contender]:
    import torch

    plain_model = contenders[0]
    with torch.inference_mode():
        flops = [lab.flops(one.work) for one in contenders]
        tokens = [one.tokens() for one in contenders]
        taken = interleaved({str(number): one.work for number, one in enumerate(contenders)}, rounds)
    rows = []
    for number, one in enumerate(contenders):
        result, seconds = one.result, sorted(taken[str(number)])
        same = result.items == plain_model.result.items
        rows.append(
            Contender(
                name=one.name,
                how=one.how,
                options=one.options,
                budget=one.budget,
                accuracy=result.accuracy,
                low=result.low,
                high=result.high,
                types={
                    kind: Kind(n=found.n, accuracy=found.accuracy, low=found.low, high=found.high)
                    for kind, found in result.types.items()
                },
                against=difference(result, plain_model.result) if number and same else None,
                tokens=tokens[number],
                flops=flops[number],
                time=ratio(taken["0"], taken[str(number)]),
                milliseconds=round(1e3 * seconds[len(seconds) // 2], 2),
                parameters=one.parameters,
            )
        )
    for row in rows:
        row.best = not any(
            other.accuracy >= row.accuracy
            and other.flops <= row.flops
            and (other.accuracy, -other.flops) != (row.accuracy, -row.flops)
            for other in rows
        )
    return rows
