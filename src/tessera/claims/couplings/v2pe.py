"""V2PE: visual tokens that advance the position by less than one keep long inputs within trained positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Checked, Cost, Effect, Exact, Experiment, Paper, Plug, Vary, beats, worse
from tessera.lab.protocols.long_inputs import LongInputs
from tessera.lab.protocols.prefill import Prefill

if TYPE_CHECKING:
    from tessera.lab.lab import Lab

STRIDES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""What the paper draws from in training, in 256ths of a position."""


def counted_by_hand(lab: Lab) -> Checked:
    """Fifty random layouts of text and images with strides of their own, padded at the left, counted token by token."""
    import math
    import random

    import torch

    from tessera.lab.claims import part_module
    from tessera.registry import get

    positions: Any = part_module(get("couplings", "v2pe")).positions
    draw, worst, moved = random.Random(0), 0.0, False
    for _ in range(50):
        kinds, strides = [-1] * draw.randint(0, 4), dict[int, int]()
        padding = len(kinds)
        for image in range(draw.randint(1, 4)):
            strides[image] = draw.choice(STRIDES)
            kinds += [-1] * draw.randint(0, 3) + [image] * draw.randint(1, 12)
        kinds += [-1] * draw.randint(0, 4)
        wanted, last = [1.0] * padding, -1.0
        for place, kind in enumerate(kinds[padding:], padding):
            if kind < 0:
                last = math.ceil(last) + 1
            else:
                last = math.ceil(last) if place > padding and kinds[place - 1] not in (-1, kind) else last
                last += strides[kind] / 256
            wanted.append(last)
        image_of = torch.tensor([kinds])
        real = torch.tensor([[place >= padding for place in range(len(kinds))]])
        steps = torch.tensor([[strides.get(kind, 256) / 256 for kind in kinds]], dtype=torch.float64)
        found = positions(image_of >= 0, real, image_of, steps)[0]
        worst = max(worst, float((found - torch.tensor(wanted, dtype=torch.float64)).abs().max()))
        moved = moved or wanted[padding:] != list(range(len(kinds) - padding))
    return Checked(
        checks={"positions are equal": worst == 0, "some are no whole numbers counted up": moved},
        measured={"positions differ by": worst},
        shape="50 layouts of 1 to 4 images, float64",
    )


VARIABLE: dict[str, Any] = {"v2pe": {"strides": STRIDES}}
NEAR: dict[str, Any] = {"plug": {"v2pe": {"strides": (16,)}}}

CLAIMS = [
    Exact(
        id="counted_by_hand",
        promise="A visual token advances the position by stride / 256, text by 1, and text after an image goes on at the next "
        "whole number.",
        paper="section 3.2, equation 4",
        run=counted_by_hand,
    ),
    Experiment(
        id="finds_in_long_inputs",
        promise="Among eight times as many pictures as in training, accuracy is higher for a model trained with random strides "
        "and asked with a small one than for one with whole positions.",
        paper="table 4",
        protocol=LongInputs(
            asked={
                "many, stride 16": {**NEAR, "long": True},
                "few, stride 16": NEAR,
                "many": {"long": True},
                "few": {},
                "mismatched": {**NEAR, "long": True, "mismatched": True},
            },
        ),
        treatment=Vary("random strides, then 16", train=VARIABLE, asked="many, stride 16", uses=("v2pe",)),
        baseline=Vary("whole positions", asked="many"),
        control=Vary("mismatched pictures", train=VARIABLE, asked="mismatched", uses=("v2pe",)),
        others={
            "whole positions, few": Vary("whole positions, few", asked="few"),
            "stride 16, few": Vary("random strides, then 16, few", train=VARIABLE, asked="few, stride 16", uses=("v2pe",)),
            "stride 256": Vary("random strides, then 256", train=VARIABLE, asked="many", uses=("v2pe",)),
        },
        primary=beats("baseline"),
        valid_if=(worse("control"), worse("baseline", than="whole positions, few")),
        secondary=(
            beats("stride 256"),
            Effect(
                (("treatment", "", 1.0), ("stride 16, few", "", -1.0), ("baseline", "", -1.0), ("whole positions, few", "", 1.0)),
                "from few pictures to many the treatment loses less than baseline",
            ),
        ),
        note="Four visual tokens a picture: 8 to 16 of them in training, 128 when it is asked. A half is chance.",
    ),
    Cost(
        id="costs_nothing",
        promise="Other positions take no further operations.",
        paper="section 3.2",
        protocol=Prefill(),
        treatment=Plug("v2pe", strides=(16,)),
        at_least={"flop ratio": Paper(1.0, "section 3.2, without a number: positions alone are changed")},
    ),
]
