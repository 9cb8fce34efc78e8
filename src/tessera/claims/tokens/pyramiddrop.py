"""PyramidDrop: fewer visual tokens from stage to stage, ranked by the last instruction token's attention."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Cost, Exact, Experiment, Paper, Plug, beats, worse
from tessera.lab.protocols.answering import Answering
from tessera.lab.protocols.prefill import Prefill

if TYPE_CHECKING:
    from tessera.lab.lab import Lab

KEEP = (0.5, 0.25, 0.125)
"""The authors' shares."""
LAYERS = (2, 4, 6)
"""Behind a quarter, half and three quarters of the reference model's eight layers, as the authors drop."""


def top_half(lab: Lab) -> Checked:
    """Against a loop over the next layer's attention as transformers' eager code reports it, averaged over heads."""
    import torch

    from tessera.hosts.zoo import tiny
    from tessera.lab.exact import best, places, prefilled, same

    made, equal = tiny("llava"), []
    made.model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = made.model(**made.inputs((1, 1)), output_attentions=True).attentions[3].mean(1)
    with prefilled("llava", "pyramiddrop", {"keep": (0.5,), "layers": (3,)}) as (_, sequence):
        for row, found in enumerate(places(sequence, 3)):
            own = sequence.visual[row].nonzero().flatten().tolist()
            equal.append(found == best(own, attention[row, int(sequence.query[row])], len(own) // 2))
    return same({"the same tokens, in the same order": all(equal)}, shape="LLaVA with random weights, layer 3, 2 prompts")


def from_stage_to_stage(lab: Lab) -> Checked:
    """Which tokens enter each of the six layers of a tiny host, by the authors' shares."""
    from tessera.lab.exact import places, prefilled, same

    with prefilled("llava", "pyramiddrop", {"keep": KEEP, "layers": (1, 3, 4)}) as (_, sequence):
        found = [places(sequence, layer) for layer in range(6)]
    sizes = [[len(row) for row in rows] for rows in found]
    inside = all(set(later) <= set(first) for a, b in pairwise(found) for first, later in zip(a, b, strict=True))
    return same(
        {
            "64, 32, 32, 16, 8, 8 tokens": sizes == [[n, n] for n in (64, 32, 32, 16, 8, 8)],
            "what left does not come back": inside,
        }
    )


CLAIMS = [
    Exact(
        id="top_half",
        promise="The tokens that stay are the top half by the last instruction token's attention, in order.",
        paper="section 3.2",
        run=top_half,
    ),
    Exact(
        id="from_stage_to_stage",
        promise="Each stage keeps its share of the original tokens, out of those of the stage before.",
        paper="section 3.2",
        run=from_stage_to_stage,
    ),
    Experiment(
        id="beats_random",
        promise="Accuracy with tokens dropped in stages by attention is higher than with as many random tokens dropped in the "
        "same layers.",
        paper="tables 1 and 5",
        protocol=Answering(),
        treatment=Plug("pyramiddrop", keep=KEEP, layers=LAYERS),
        baseline=Plug("pyramiddrop", keep=(1.0,)),
        control=Plug("random", keep=KEEP, layers=LAYERS, repeats=3),
        primary=beats("control"),
        valid_if=(worse("control", than="baseline"),),
        secondary=(worse("treatment", than="baseline"),),
        note="What is lost against all tokens has an interval beside it; the paper calls it comparable, without a number.",
    ),
    Cost(
        id="saves_operations",
        promise="Three drops save 55 % of the language model's operations in a prefill of LLaVA-NeXT's length.",
        paper="abstract",
        protocol=Prefill(patches=54, rounds=1),
        treatment=Plug("pyramiddrop", keep=KEEP),
        at_least={"language flop ratio": Paper(1 / (1 - 0.55), "abstract: 55 % fewer operations for LLaVA-NeXT")},
        amended=(
            "First counted over tower, connector and language model together, where it falls short (2.10 against 2.22); "
            "the paper's number is about the language model.",
        ),
        note="2916 visual tokens for the paper's 2880; 64 text tokens are counted too.",
    ),
]
