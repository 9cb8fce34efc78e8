"""Mini-Monkey's scale compression: half of the detail layer's tokens stay, chosen by what later tokens look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Cost, Exact, Experiment, Plug, beats, worse
from tessera.lab.protocols.answering import Answering
from tessera.lab.protocols.prefill import Prefill

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def scores_like_a_loop(lab: Lab) -> Checked:
    """Random attention, two rows whose detail layers differ in length, one of them padded."""
    import torch

    from tessera.lab.exact import same
    from tessera.parts.tokens.scm import scores

    attention = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(0)).tril()
    detail = torch.tensor([[0, 1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0, 0]]).bool()
    real = torch.tensor([[1] * 9, [0, 1, 1, 1, 1, 1, 1, 1, 1]]).bool()
    found, worst = scores(attention, detail, real), 0.0
    for row in range(2):
        last = max(key for key in range(9) if detail[row, key])
        later = [query for query in range(last + 1, 9) if real[row, query]]
        for key in range(9):
            wanted = sum(float(attention[row, query, key]) for query in later) / len(later)
            worst = max(worst, abs(float(found[row, key]) - wanted))
    return same({"equal to a millionth": worst < 1e-6}, score=worst)


def best_half(lab: Lab) -> Checked:
    """Of the first of two images, against a loop over the second layer's attention as transformers' eager code reports it."""
    import torch

    from tessera.hosts.zoo import tiny
    from tessera.lab.exact import best, places, prefilled, same

    made, equal, whole = tiny("llava"), [], []
    made.model.set_attn_implementation("eager")
    with torch.no_grad():
        attention = made.model(**made.inputs((2, 2)), output_attentions=True).attentions[1].mean(1)
    with prefilled("llava", "scm", {"keep": 0.5, "layer": 2, "detail": (1,)}, images=(2, 2)) as (_, sequence):
        for row, found in enumerate(places(sequence, 2)):
            detail, other = ((sequence.image_of[row] == image).nonzero().flatten().tolist() for image in (0, 1))
            real = sequence.stages[0].real[row].nonzero().flatten().tolist()
            later = [place for place in real if place > max(detail)]
            score = torch.stack([attention[row, place] for place in later]).mean(0)
            equal.append([place for place in found if place in detail] == best(detail, score, len(detail) // 2))
            whole.append([place for place in found if place in other] == other)
    return same(
        {"the same half of the detail layer": all(equal), "the other image stays whole": all(whole)},
        shape="LLaVA with random weights, 2 prompts of 2 images of 64 tokens",
    )


CLAIMS = [
    Exact(
        id="scores_like_a_loop",
        promise="A token's score is the mean attention that real tokens behind the detail layer pay it.",
        paper="equation 2",
        run=scores_like_a_loop,
    ),
    Exact(
        id="best_half",
        promise="The half of the detail layer's tokens that later tokens attend to most in the second layer stays, in order.",
        paper="section 3.2",
        run=best_half,
    ),
    Experiment(
        id="beats_random",
        promise="Accuracy with half of the detail tokens, chosen by the second layer's attention, is higher than with a random "
        "half.",
        paper="table 5",
        protocol=Answering(),
        treatment=Plug("scm", keep=0.5, layer=2, detail=(1,)),
        baseline=Plug("scm", keep=1.0, layer=2, detail=(1,)),
        control=Plug("random", keep=(0.5,), layers=(2,), repeats=3),
        primary=beats("control"),
        valid_if=(worse("control", than="baseline"),),
        secondary=(worse("treatment", than="baseline"),),
        note="The single image is taken for the detail layer, so that only the question stands behind it, and no other views.",
    ),
    Cost(
        id="saves_operations",
        promise="Half of 576 detail tokens from the third layer on takes fewer operations than all of them.",
        paper="section 3.2",
        protocol=Prefill(),
        treatment=Plug("scm", keep=0.5, layer=2, detail=(1,)),
        saves=("flop ratio",),
        amended=("First at least 1, which no saving at all would have passed.",),
        note="The second layer's whole attention is written down to be averaged, which a fused kernel would not do.",
    ),
]
