"""COMM: all layers of two frozen encoders, merged, locate things better than their last layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Build, Checked, Exact, Experiment, beats, worse
from tessera.lab.protocols.frozen_features import FrozenFeatures

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.lab.lab import Lab


def equation(lab: Lab) -> Checked:
    """Layerscale with all weight on one layer; LLN-Layerscale, the MLP and the joining read naively in double precision."""
    import torch

    from tessera.nn.tokens import from_grid
    from tessera.parts.experts.comm import COMM, LayerMerge

    torch.manual_seed(0)
    widths, counts, grids = [12, 8], [4, 6], [(3, 4), (3, 4)]
    layers = [[torch.randn(2, 12, w, dtype=torch.float64) for _ in range(n)] for w, n in zip(widths, counts, strict=True)]
    sets = [from_grid(own[-1], grid) for own, grid in zip(layers, grids, strict=True)]
    for tokens, own in zip(sets, layers, strict=True):
        tokens.levels = tuple(own)
    chosen = []
    for i in range(4):
        merge = LayerMerge(12, 4, "layerscale").double()
        merge.logits.data.fill_(-math.inf)[i] = 0.0
        chosen.append(torch.equal(merge(layers[0]), layers[0][i]))
    comm = COMM(COMM.Config(shares=(1.0, 0.5)), widths, grids, counts).double()
    for parameter in comm.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        difference = float((comm(sets).features - _naive(comm, layers)).abs().max())
    return Checked(
        checks={"the chosen layer, bit for bit": all(chosen), "the equation to 1e-9": difference < 1e-9},
        measured={"difference": difference},
        shape="encoders of 4 and 6 layers, float64",
    )


def _naive(comm: Any, layers: Sequence[Sequence[Tensor]]) -> Tensor:
    import torch

    joined = []
    for k, own in enumerate(layers):
        merge: Any = comm.merges[k]
        own = own[len(own) - comm.counts[k] :]
        total = torch.zeros_like(own[0])
        weights = merge.logits.exp() / merge.logits.exp().sum()
        for weight, (linear, norm), layer in zip(weights, merge.lln, own, strict=True):
            x = layer @ linear.weight.T + linear.bias
            x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + norm.eps).sqrt()
            total += weight * (x * norm.weight + norm.bias)
        if k:
            mlp: Any = comm.align[k - 1]
            hidden = total @ mlp.up.weight.T + mlp.up.bias
            inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
            total = (0.5 * hidden * (1 + inner.tanh())) @ mlp.down.weight.T + mlp.down.bias
        joined.append(total)
    return torch.cat(joined, -1)


MERGED = {"kind": "comm"}
LAST = {"kind": "comm", "shares": (1e-3,)}
"""The same modules on the last layer of each encoder."""

CLAIMS = [
    Exact(
        id="equation",
        promise="A weight of one on a layer gives that layer, and the merge equals its equation.",
        paper="section 3.2",
        run=equation,
    ),
    Experiment(
        id="merges_layers",
        promise="Boxes that a linear layer predicts are right more often from all merged layers of two encoders than from their "
        "last layers.",
        paper="section 3.2, tables 1 to 3",
        protocol=FrozenFeatures(),
        metric="box",
        treatment=Build("merged", experts=MERGED),
        baseline=Build("last layers", experts=LAST),
        control=Build("mixed layers", {"layers": "mixed"}, experts=MERGED),
        others={
            "first alone": Build("object expert alone", {"towers": (0,)}, experts=LAST),
            "second alone": Build("reading expert alone", {"towers": (1,)}, experts=LAST),
        },
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(
            beats("first alone"),
            beats("second alone"),
            beats("first alone", metric="category"),
            beats("first alone", metric="tint"),
            beats("second alone", metric="character"),
        ),
        note="In the control all layers but the last come from other places: as many weights, and no sight from shallow layers.",
    ),
]
