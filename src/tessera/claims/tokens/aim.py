"""AIM: similar visual tokens are merged before the language model, unimportant ones are pruned inside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Cost, Exact, Experiment, Paper, Plug, beats, worse
from tessera.lab.protocols.answering import Answering
from tessera.lab.protocols.prefill import Prefill

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.lab.lab import Lab


def merges_like_a_loop(lab: Lab) -> Checked:
    """Rounds of bipartite matching on random tokens, and on tokens of which many are equally alike."""
    import torch

    from tessera.lab.exact import same
    from tessera.parts.tokens.aim import merged

    generator = torch.Generator().manual_seed(0)
    kinds = torch.eye(3, dtype=torch.float64)[torch.randint(3, (6, 9), generator=generator)]
    worst, equal = 0.0, True
    for tokens in (*torch.randn(10, 11, 5, generator=generator, dtype=torch.float64), *kinds):
        for count in (1, 3, 9):
            wanted, left = _merged_by_hand(list(tokens), count)
            found, places = merged(tokens[None], count)
            equal = equal and places[0].tolist() == left
            worst = max(worst, float((found[0] - torch.stack(wanted)).abs().max())) if equal else worst
    return same({"the same tokens go": equal, "the same means": worst < 1e-12}, mean=worst)


def _merged_by_hand(tokens: list[Tensor], count: int) -> tuple[list[Tensor], list[int]]:
    """One round, pair by pair: -> (tokens that are left, their places)."""
    import torch

    pairs = []
    for a in range(0, len(tokens), 2):
        alike = [
            (round(-float(torch.nn.functional.cosine_similarity(tokens[a], tokens[b], 0)), 12), b)
            for b in range(1, len(tokens), 2)
        ]
        pairs.append((*min(alike), a))
    chosen = sorted((s, a, b) for s, b, a in pairs)[: min(count, len(tokens) // 2)]
    gone = {a for _, a, _ in chosen}
    left = [place for place in range(len(tokens)) if place not in gone]
    return [torch.stack([tokens[p], *(tokens[a] for _, a, b in chosen if b == p)]).mean(0) for p in left], left


def ranks_like_a_power(lab: Lab) -> Checked:
    """Random causal logits of four heads, the reference in double precision; temperature 0.1, five steps, uniform start."""
    import torch

    from tessera.lab.exact import same
    from tessera.parts.tokens.aim import page_rank

    logits = torch.randn(1, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    logits = logits.masked_fill(torch.ones(12, 12).triu(1).bool(), torch.finfo(torch.float32).min)
    walk = torch.linalg.matrix_power((logits.double() / 0.1).softmax(-1), 5)[0]
    wanted = (torch.full((12,), 1 / 12, dtype=torch.float64) @ walk).square().mean(0).sqrt()
    worst = float((page_rank(logits, torch.ones(1, 12, dtype=torch.bool))[0] - wanted).abs().max())
    return same({"equal to a millionth": worst < 1e-6}, rank=worst)


CLAIMS = [
    Exact(
        id="merges_like_a_loop",
        promise="Merging equals a loop over all pairs of tokens; among equally similar pairs the earlier one is merged.",
        paper="section 3.1",
        run=merges_like_a_loop,
    ),
    Exact(
        id="ranks_like_a_power",
        promise="PageRank equals the start vector times the fifth power of the matrix.",
        paper="section 3.2",
        run=ranks_like_a_power,
    ),
    Experiment(
        id="beats_random",
        promise="Accuracy with tokens merged to a quarter and pruned in late layers is higher than with as many random tokens in "
        "the same layers.",
        paper="table 1",
        protocol=Answering(),
        treatment=Plug("aim", merge=0.25, start=4, stop=6),
        baseline=Plug("aim", merge=1.0, prune=False),
        control=Plug("random", keep=(0.25, 0.125, 0.0), layers=(0, 5, 6), repeats=3),
        primary=beats("control"),
        valid_if=(worse("control", than="baseline"),),
        secondary=(worse("treatment", than="baseline"),),
        note="The authors' 14th and 22nd of 28 layers, stretched to eight: half go on in front of the sixth layer, none in "
        "front of the seventh.",
    ),
    Cost(
        id="seven_times_fewer_operations",
        promise="With tokens merged to a quarter and pruned to none, the language model takes seven times fewer operations for a "
        "video.",
        paper="abstract",
        protocol=Prefill(patches=79, rounds=0),
        treatment=Plug("aim", merge=0.25),
        at_least={"language flop ratio": Paper(7.0, "abstract: 7-fold reduction in FLOPs")},
        amended=(
            "First counted over tower, connector and language model together, where it falls short (5.53 against 7); "
            "the paper's number is about the language model.",
        ),
        note="6241 visual tokens for 32 frames of 196; 64 text tokens are counted too.",
    ),
]
