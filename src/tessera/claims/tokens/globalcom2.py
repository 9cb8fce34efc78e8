"""GlobalCom2: the thumbnail decides how much of each tile stays, and which tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Exact, Experiment, Vary, beats, worse
from tessera.lab.protocols.canvas import Canvas

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def like_a_loop(lab: Lab) -> Checked:
    """Against loops over tiles and tokens on random scores of a 4 x 4 thumbnail and a canvas of 2 x 3 tiles."""
    import math

    import torch

    from tessera.lab.exact import best, same
    from tessera.nn.layout import Block, Layout
    from tessera.nn.raster import raster
    from tessera.parts.tokens.globalcom2 import compressed

    places = raster([[Layout(16 + 96, (Block(0, 4, 4), Block(16, 8, 12, whole=False)))]])
    score = torch.randn(112, generator=torch.Generator().manual_seed(0))
    thumbnail, own = score[:16].view(4, 4), score[16:].view(8, 12)
    sums = [float(thumbnail[2 * r : 2 * r + 2, [c] if c < 2 else [2, 3]].double().sum()) for r in range(2) for c in range(3)]
    powers = [math.exp((s - max(sums)) / 10) for s in sums]
    sigma = [p / sum(powers) for p in powers]
    shares = [min(1.0, 0.5 * (1 + s - sum(sigma) / 6)) for s in sigma]
    resized = torch.nn.functional.interpolate(thumbnail[None, None], size=(8, 12), mode="bilinear", align_corners=False)[0, 0]
    kept = best(range(16), score, 8)
    for number, share in enumerate(shares):
        r, c = divmod(number, 3)
        inside = (slice(4 * r, 4 * r + 4), slice(4 * c, 4 * c + 4))
        both = own[inside] / own[inside].norm() + resized[inside] / resized[inside].norm()
        for place in best(range(16), both.flatten(), int(16 * share)):
            kept.append(16 + (4 * r + place // 4) * 12 + 4 * c + place % 4)
    found = compressed(score, places, 0.5, 10.0).nonzero().flatten().tolist()
    return same({"the same tokens stay": found == sorted(kept)}, share_sum=abs(sum(shares) / 6 - 0.5))


def leaves_a_quarter(lab: Lab) -> Checked:
    """What the language model of a tiny LLaVA-NeXT is left with, newlines aside, and what that takes."""
    from tessera.hosts.zoo import tiny
    from tessera.lab.exact import prefilled

    made = tiny("llava_next")
    prompt = made.inputs((1, 1))
    unplugged = lab.flops(lambda: made.model(**prompt))

    def tokens(keep: float) -> tuple[int, int]:
        with prefilled("llava_next", "globalcom2", {"keep": keep}) as (host, sequence):
            plugged = lab.flops(lambda: host.model(**prompt))
            return int(sequence.stages[0].visual.sum()), plugged

    newlines, _ = tokens(0.0)
    left, plugged = tokens(0.25)
    all_, _ = tokens(1.0)
    return Checked(
        checks={
            "at most a quarter of the tokens": left - newlines <= 0.25 * (all_ - newlines),
            "some tokens": left > newlines,
            "fewer operations": plugged < unplugged,
        },
        measured={"visual tokens": all_, "left": left, "newlines": newlines, "flop ratio": round(unplugged / plugged, 4)},
        shape="LLaVA-NeXT with random weights, 6 layers of width 64, 2 prompts",
    )


CLAIMS = [
    Exact(
        id="like_a_loop",
        promise="The shares of tiles and the tokens that stay equal those of a loop over the equations.",
        paper="equations 4 to 8",
        run=like_a_loop,
    ),
    Exact(
        id="leaves_a_quarter",
        promise="Of thumbnail and tiles at most a quarter of the tokens is left, newlines aside, for fewer operations.",
        paper="table 5",
        run=leaves_a_quarter,
    ),
    Experiment(
        id="keeps_small_things",
        promise="At a tenth of the tokens, small objects keep at least half of theirs more often when the thumbnail guides the "
        "choice than when each tile is chosen by itself.",
        paper="table 3",
        protocol=Canvas(),
        metric="small things",
        treatment=Vary("guided by the thumbnail", uses=("globalcom2",), choice="guided"),
        baseline=Vary("tile by tile", uses=("globalcom2",), choice="local"),
        control=Vary("random", uses=("globalcom2",), choice="random"),
        primary=beats("baseline"),
        valid_if=(worse("control", than="baseline"),),
        secondary=(beats("baseline", metric="small things' tokens"), beats("baseline", metric="things' tokens")),
        note="The object expert's certainty stands for the class token's attention; accuracy of answers is not measured.",
    ),
]
