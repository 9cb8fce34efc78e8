"""MoVA: the question chooses the experts, and those that are not chosen cost nothing in the adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Checked, Cost, Exact, Experiment, Vary, beats, worse
from tessera.lab.protocols.expert_routing import ExpertRouting
from tessera.lab.protocols.operations import Operations

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.lab.lab import Lab
    from tessera.parts.experts.mova import AdapterBlock


def equation(lab: Lab) -> Checked:
    """Untrained, without downsampling, the base comes out bit for bit; with random weights a block equals a naive reading, head
    by head; noise in place of an expert that is not named changes no bit."""
    import torch

    from tessera.nn.tokens import QuestionText, from_grid
    from tessera.parts.experts.mova import AdapterBlock, MoVA

    torch.manual_seed(0)
    question = QuestionText(embeddings=torch.randn(3, 5, 12), mask=torch.tensor([[1, 1, 1, 0, 0], [1] * 5, [0] * 5]).bool())
    plain = MoVA(MoVA.Config(heads=2, downsample=False), [16, 8, 12], [(3, 3)] * 3, text_width=12).eval()
    sets = [from_grid(torch.randn(3, 9, width), (3, 3)) for width in (16, 8, 12)]
    noise = [*sets[:2], from_grid(torch.randn(3, 9, 12), (3, 3))]
    with torch.no_grad():
        begins = torch.equal(plain(sets, question).features, sets[0].features)
        for parameter in plain.parameters():
            parameter.normal_()
        named = torch.tensor([[True, False]] * 3)
        deaf = torch.equal(plain(sets, question, named).features, plain(noise, question, named).features)
        block = AdapterBlock(16, [8, 12], 6, 2, 1, (3, 3)).double()
        for parameter in block.parameters():
            parameter.normal_(std=0.5)
        x, values = sets[0].features.double(), [s.features.double() for s in sets[1:]]
        text, named = torch.randn(3, 6).double(), torch.tensor([[True, True], [False, True], [False, False]])
        difference = float((block(x, values, text, named) - _naive(block, x, values, text, named)).abs().max())
    return Checked(
        checks={
            "the untrained adapter gives its base": begins,
            "an expert that is not named changes nothing": deaf,
            "a block equals a naive reading to 1e-9": difference < 1e-9,
        },
        measured={"difference": difference},
        shape="3 images of 3 x 3 places, 16 channels, experts of 8 and 12, float64",
    )


def _naive(block: AdapterBlock, x: Tensor, values: Sequence[Tensor], text: Tensor, named: Tensor) -> Tensor:
    import torch

    gate: Any = block.gate
    rows = []
    for b in range(len(x)):
        logits = gate(torch.cat([text[b], x[b].mean(0)]))
        open_ = [e for e in range(len(values)) if bool(named[b, e])]
        best = sorted(open_, key=lambda e: -float(logits[e]))[: block.top]
        hidden = x[b]
        for e in best:
            share = logits[e].exp() / sum(logits[i].exp() for i in best)
            cross: Any = block.cross[e]
            hidden = hidden + share * _attend(cross, block.query_norm[e](x[b]), block.value_norm[e](values[e][b]))
        normed = block.norm1(hidden)
        hidden = hidden + _attend(block.attention, normed, normed)
        mlp, normed = block.mlp, block.norm2(hidden)
        gated = mlp.gate(normed)
        rows.append(hidden + mlp.down(mlp.norm(gated * gated.sigmoid() * mlp.up(normed))))
    return torch.stack(rows)


def _attend(layer: Any, x: Tensor, value: Tensor) -> Tensor:
    """One image; every pair of channels is turned by hand."""
    import torch

    size = x.shape[1] // layer.heads
    columns = layer.grid[1]

    def turned(t: Tensor) -> Tensor:
        out = t.clone()
        for n in range(len(t)):
            for pair in range(size // 2):
                axis, k = divmod(pair, size // 4)
                angle = torch.tensor((n // columns, n % columns)[axis] * 10_000.0 ** (-2 * k / (size // 2)), dtype=torch.float32)
                cos, sin = float(angle.cos()), float(angle.sin())
                a, b = t[n, 2 * pair], t[n, 2 * pair + 1]
                out[n, 2 * pair], out[n, 2 * pair + 1] = a * cos - b * sin, b * cos + a * sin
        return out

    heads = []
    for h in range(layer.heads):
        own = slice(h * size, (h + 1) * size)
        q, k, v = layer.query(x)[:, own], layer.key(value)[:, own], layer.value(value)[:, own]
        heads.append((turned(q) @ turned(k).T / math.sqrt(size)).softmax(-1) @ v)
    return layer.out(layer.norm(torch.cat(heads, -1)))


CLAIMS = [
    Exact(
        id="equation",
        promise="The adapter starts as the identity on its base encoder, equals its equations, and leaves out every expert that "
        "is not named.",
        paper="section 3.3",
        run=equation,
    ),
    Experiment(
        id="routes_by_question",
        promise="Accuracy is higher with one expert, chosen by the question, than with all experts together.",
        paper="section 3.2, table 6",
        protocol=ExpertRouting(),
        treatment=Vary("routed", uses=("mova",)),
        baseline=Vary("all experts", uses=("mova",)),
        control=Vary("random routing", uses=("mova",)),
        others={
            "object alone": Vary("object expert alone", uses=("mova",)),
            "reading alone": Vary("reading expert alone", uses=("mova",)),
            "none": Vary("no expert", uses=("mova",)),
        },
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(beats("object alone"), beats("reading alone"), beats("none")),
    ),
    Cost(
        id="skips_experts",
        promise="The adapter takes fewer operations with one expert named than with all three.",
        paper="section 3.3",
        protocol=Operations(),
        treatment=Vary("adapter", uses=("mova",), named=1),
        baseline=Vary("adapter", uses=("mova",), named=3),
        saves=("flop ratio",),
        amended=("First at least 1, which no saving at all would have passed.",),
    ),
]
