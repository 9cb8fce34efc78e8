"""Random dropping: the control that every ranking of visual tokens has to beat. No paper."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Exact, Experiment, Plug, worse
from tessera.lab.protocols.answering import Answering

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def blind_choice(lab: Lab) -> Checked:
    """A control that looked at the image would be none."""
    from tessera.hosts.zoo import tiny
    from tessera.lab.exact import places, prefilled, same

    chosen = []
    for seed in (0, 1):
        with prefilled("llava", "random", {"keep": (0.25,), "seed": seed}) as (host, sequence):
            chosen.append(places(sequence, 0))
            other = {k: v.flip(-1) if v.is_floating_point() else v for k, v in tiny("llava").inputs((1, 1)).items()}
            host.model(**other)
            assert host.sequence is not None
            again = places(host.sequence, 0)
    return same(
        {
            "other images, the same tokens": chosen[-1] == again,
            "another seed, other tokens": chosen[0] != chosen[1],
            "a quarter of each image's": [len(row) for row in again] == [16, 16],
        }
    )


CLAIMS = [
    Exact(
        id="blind_choice",
        promise="The choice does not depend on the image, and another seed chooses other tokens.",
        run=blind_choice,
    ),
    Experiment(
        id="costs_accuracy",
        promise="Accuracy with a random quarter of the tokens is lower than with all of them, and with a random sixteenth lower "
        "still.",
        protocol=Answering(),
        treatment=Plug("random", keep=(0.25,), repeats=3),
        baseline=Plug("random", keep=(1.0,)),
        control=Plug("random", keep=(0.0625,), repeats=3),
        primary=worse("treatment", than="baseline"),
        valid_if=(worse("control", than="treatment"),),
    ),
]
