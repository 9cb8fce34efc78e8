"""Uniform dropping: the control that keeps tokens spread evenly over the image. No paper."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Exact, Experiment, Plug, beats, worse
from tessera.lab.protocols.answering import Answering

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def every_second(lab: Lab) -> Checked:
    """On a host with a raster of 8 x 8, at a quarter and at a sixteenth of the tokens."""
    from tessera.lab.exact import places, prefilled, same

    equal = {}
    for step in (2, 4):
        wanted = [8 * row + column for row in range(0, 8, step) for column in range(0, 8, step)]
        with prefilled("llava", "uniform", {"keep": (1 / step**2,)}) as (_, sequence):
            first = [int(visual.nonzero()[0]) for visual in sequence.visual]
            found = [[place - start for place in own] for own, start in zip(places(sequence, 0), first, strict=True)]
        equal[f"every {step} rows and columns"] = found == [wanted, wanted]
    return same(equal, shape="LLaVA with random weights, 64 tokens, 2 prompts")


def nested(lab: Lab) -> Checked:
    """What a later drop keeps was kept by the earlier ones, at shares that no lattice has."""
    from tessera.lab.exact import places, prefilled, same

    with prefilled("llava", "uniform", {"keep": (0.7, 0.4, 0.15), "layers": (0, 2, 4)}) as (_, sequence):
        found = [places(sequence, layer) for layer in (0, 2, 4)]
    sizes = [[len(row) for row in rows] for rows in found]
    inside = all(set(later) < set(first) for a, b in pairwise(found) for first, later in zip(a, b, strict=True))
    return same({"each set holds the next": inside, "as many as asked for": sizes == [[44, 44], [25, 25], [9, 9]]})


CLAIMS = [
    Exact(
        id="every_second",
        promise="At a quarter every second row and column of tokens stays, at a sixteenth every fourth.",
        run=every_second,
    ),
    Exact(id="nested", promise="Later drops keep a subset of what earlier ones kept.", run=nested),
    Experiment(
        id="beats_random",
        promise="Accuracy with an evenly spread quarter of the visual tokens is higher than with a random quarter.",
        protocol=Answering(),
        treatment=Plug("uniform", keep=(0.25,)),
        baseline=Plug("uniform", keep=(1.0,)),
        control=Plug("random", keep=(0.25,), repeats=3),
        primary=beats("control"),
        valid_if=(worse("control", than="baseline"),),
        secondary=(worse("treatment", than="baseline"),),
        note="Evenly spread tokens leave no gaps, so that every thing is touched by one; what is lost has an interval beside it.",
    ),
]
