"""COMM merges the layers of every vision encoder, shallow ones included, before it joins the encoders.

Source: Jiang et al., "From CLIP to DINO: Visual Encoders Shout in Multi-modal Large Language Models", 2023, arXiv:2310.08825.
Deep layers know what a thing is, shallow ones where exactly it is; a projector that reads the last layer alone loses the
latter. So every layer passes a linear layer and a LayerNorm of its own (LLN), and what an encoder gives is their weighted sum
with learned weights that sum to one (LLN-Layerscale). Encoders that were not trained with language (DINOv2 there) pass one more
MLP, which aligns them; then all are joined on channels.

Deviations: the weights that sum to one are a softmax of learned logits, equal at first. Which deep layers of the other
encoders are merged is a share (the paper: 19 to 24 of 24). The linear layer to the language model's width is the connector's
task. No code was published to compare with.

Shapes: K encoders of L_k layers [B, N_k, D_k] -> [B, N_1, D_1 + ... + D_K].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from tessera.config import config
from tessera.errors import UserError
from tessera.lab.claim import Finding, claim
from tessera.nn import initialise
from tessera.nn.tokens import VisualTokens, from_grid, resample
from tessera.nn.vit import MLP
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.lab.instruments.towers import Seen
    from tessera.lab.lab import Lab

Merge = Literal["single", "mean_half", "mean", "layerscale", "lln_layerscale"]


class LayerMerge(nn.Module):
    """Layers [B, N, D] of one encoder, shallow to deep -> one [B, N, D].

    single: the last; mean_half: mean of the deeper half; mean: of all; layerscale: weighted; lln_layerscale: weighted, each
    behind its own linear layer and LayerNorm.
    """

    def __init__(self, width: int, layers: int, merge: Merge) -> None:
        super().__init__()
        self.merge = merge
        self.layers = layers
        if merge in ("layerscale", "lln_layerscale"):
            self.logits = nn.Parameter(torch.zeros(layers))
        if merge == "lln_layerscale":
            self.lln = nn.ModuleList(nn.Sequential(nn.Linear(width, width), nn.LayerNorm(width)) for _ in range(layers))

    def init_weights(self) -> None:
        """Equal weights; linear layers that keep the variance of what passes through."""
        initialise.tree(self)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise.linear(module, module.in_features**-0.5)
        if self.merge in ("layerscale", "lln_layerscale"):
            init.zeros_(self.logits)

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        if self.merge == "single":
            return layers[-1]
        if self.merge == "mean_half":
            layers = layers[len(layers) // 2 :]
        if self.merge in ("mean", "mean_half"):
            return sum(layers[1:], layers[0]) / len(layers)
        weights = self.logits.softmax(0).to(layers[0].dtype)
        if self.merge == "lln_layerscale":
            layers = [lln(layer) for lln, layer in zip(self.lln, layers, strict=True)]
        return sum((w * layer for w, layer in zip(weights[1:], layers[1:], strict=True)), weights[0] * layers[0])


@part("comm", socket="experts", catalog=166)
class COMM(nn.Module):
    """Layers of all encoders -> one set of visual tokens on the first encoder's grid."""

    wants = ("levels",)

    @config
    class Config:
        """merge: how an encoder's layers become one. shares: of each encoder's layers, counted from the last, how many take
        part (the last entry holds for all further encoders). align: width of the hidden layer of the MLP behind every encoder but
        the first, as a multiple of the encoder's; 0: no MLP."""

        merge: Merge = "lln_layerscale"
        shares: tuple[float, ...] = (1.0, 0.25)
        align: int = 4

        def validate_ranges(self) -> None:
            if not self.shares or not all(0 < share <= 1 for share in self.shares):
                raise ValueError(f"shares are above 0 and at most 1, at least one, not {self.shares}.")
            if self.align < 0:
                raise ValueError(f"align is at least 0, not {self.align}.")

    def __init__(
        self,
        config: Config,
        widths: Sequence[int],
        grids: Sequence[tuple[int, int]],
        levels: Sequence[int] | None = None,
    ) -> None:
        """levels: how many layers each encoder shows; one each by default."""
        super().__init__()
        self.width = sum(widths)
        self.grid = grids[0]
        shown = list(levels) if levels is not None else [1] * len(widths)
        shares = [config.shares[min(k, len(config.shares) - 1)] for k in range(len(widths))]
        self.counts = [max(1, math.ceil(share * count)) for share, count in zip(shares, shown, strict=True)]
        self.merges = nn.ModuleList(
            LayerMerge(width, count, config.merge) for width, count in zip(widths, self.counts, strict=True)
        )
        aligned = config.align and len(widths) > 1
        self.align = nn.ModuleList(MLP(width, config.align * width) for width in widths[1:]) if aligned else None
        self.init_weights()

    def init_weights(self) -> None:
        """See `LayerMerge`; the MLPs alike."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                initialise.linear(module, module.in_features**-0.5)
        for merge in self.merges:
            assert isinstance(merge, LayerMerge)
            merge.init_weights()

    def forward(self, sets: Sequence[VisualTokens]) -> VisualTokens:
        """K sets with their levels -> [B, N_1, sum of D_k].

        Raises `UserError` for a set that is not a full grid, or without the levels that were announced.
        """
        joined = []
        for index, tokens in enumerate(sets):
            if tokens.grid is None:
                raise UserError(f"experts 'comm' needs full grids; the tokens of encoder {index} are not one.")
            layers = tokens.levels if tokens.levels is not None else (tokens.features,)
            count = self.counts[index]
            if len(layers) < count:
                raise UserError(f"experts 'comm' merges {count} layers of encoder {index}, but was given {len(layers)}.")
            merged = self.merges[index](layers[-count:])
            if index and self.align is not None:
                merged = self.align[index - 1](merged)
            joined.append(resample(merged, tokens.grid, self.grid))
        return from_grid(torch.cat(joined, dim=-1), self.grid, source=0 if len(sets) == 1 else -1)


# What the paper promises


@claim("a weight of one on a layer gives that layer, and the merge equals its equation", kind="exact", paper="section 3.2")
def is_its_equation(lab: Lab) -> Finding:
    """Layerscale without LLN and all weight on layer i gives layer i, bit for bit; LLN-Layerscale, the MLP and the joining are
    compared with a naive reading of the equations in double precision."""
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
    return Finding(
        checks={"the chosen layer, bit for bit": all(chosen), "the equation to 1e-9": difference < 1e-9},
        measured={"difference": difference},
        shape="encoders of 4 and 6 layers, float64",
    )


def _naive(comm: COMM, layers: Sequence[Sequence[Tensor]]) -> Tensor:
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
            mlp: Any = comm.align[k - 1]  # type: ignore[index]
            hidden = total @ mlp.up.weight.T + mlp.up.bias
            inner = math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)
            total = (0.5 * hidden * (1 + inner.tanh())) @ mlp.down.weight.T + mlp.down.bias
        joined.append(total)
    return torch.cat(joined, -1)


IMAGES, TESTED, STEPS, BATCH = 320, 160, 250, 1024
KINDS = {"scene": 0.6, "text": 0.4}


@claim("two merged encoders see where better than either, and lose neither's strength", kind="effect", paper="tables 1 to 3")
def merges_strengths(lab: Lab) -> Finding:
    """The shipped object and reading experts, frozen, read by one linear layer per ability: the category and the tint of a
    place's thing, its box as seen from there (right when the intersection over union is 0.5), the character that stands there.

    Baselines: the last layer of each expert alone; both last layers joined; each behind the same modules. Control: the reading
    expert's layers are those of other places, so that it adds parameters and no sight.
    """
    from tessera.lab.instruments.towers import look
    from tessera.lab.lab import mean, spread

    towers = [lab.reference(name)[0].encoder for name in ("object-expert", "reading-expert")]
    crowd = {"kinds": KINDS, "things": (4, 12)}
    worlds = {"train": lab.world(split="train", **crowd), "test": lab.world(**crowd)}
    train = _labelled(look(towers, [worlds["train"][i] for i in range(IMAGES)], layers=True))
    test = _labelled(look(towers, [worlds["test"][i] for i in range(TESTED)], layers=True))
    both, last = COMM.Config(), COMM.Config(shares=(1e-3,))  # the same modules on one layer each
    ways: dict[str, tuple[COMM.Config, tuple[int, ...], bool]] = {
        "merged": (both, (0, 1), False),
        "object expert": (last, (0,), False),
        "reading expert": (last, (1,), False),
        "last layers joined": (last, (0, 1), False),
        "strange layers": (both, (0, 1), True),
    }
    runs = {
        way: [_read(config, [_shuffled(p) if strange else p for p in (train, test)], used, seed) for seed in lab.seeds]
        for way, (config, used, strange) in ways.items()
    }
    scores = {way: {what: mean([run[what] for run in found]) for what in found[0]} for way, found in runs.items()}
    merged, objects, reading = (scores[way] for way in ("merged", "object expert", "reading expert"))
    box, tint = (max(objects[what], reading[what]) for what in ("box", "tint"))
    return Finding(
        checks={
            "boxes 2 points better than the better single expert": merged["box"] >= box + 0.02,
            "boxes better than from both last layers": merged["box"] > scores["last layers joined"]["box"],
            "tints at most half a point worse than the better single expert": merged["tint"] >= tint - 0.005,
            "categories at most 1 point worse than the object expert": merged["category"] >= objects["category"] - 0.01,
            "characters at most 1 point worse than the reading expert": merged["character"] >= reading["character"] - 0.01,
            "strange layers cost 10 points of characters": merged["character"] >= scores["strange layers"]["character"] + 0.10,
        },
        measured=merged,
        baseline={f"{way}: {what}": v for way in list(ways)[1:4] for what, v in scores[way].items()},
        control={f"strange layers: {what}": v for what, v in scores["strange layers"].items()},
        seeds=lab.seeds,
        spread={what: spread([run[what] for run in runs["merged"]]) for what in merged},
        shape=f"{IMAGES} images trained on for {STEPS} steps of {BATCH} places, {TESTED} asked about",
        note="The shipped experts have learned labels per patch; layers of towers trained on whole images differ more.",
    )


def _labelled(seen: Seen) -> Seen:
    """The places that have a label, as images of one place."""
    from dataclasses import replace

    keep = (seen.category >= 0) | (seen.character >= 0)
    return replace(
        seen,
        samples=[],
        features=[f[keep][:, None] for f in seen.features],
        layers=[tuple(layer[keep][:, None] for layer in own) for own in seen.layers],
        **{name: getattr(seen, name)[keep] for name in ("category", "tint", "box", "character")},
    )


def _shuffled(seen: Seen) -> Seen:
    """The second encoder's layers belong to other places."""
    from dataclasses import replace

    order = torch.randperm(len(seen.category), generator=torch.Generator().manual_seed(0))
    return replace(seen, layers=[seen.layers[0], tuple(layer[order] for layer in seen.layers[1])])


def _read(config: COMM.Config, places: Sequence[Seen], used: Sequence[int], seed: int) -> dict[str, float]:
    """Trains a merge and a linear layer per ability on `places[0]`; accuracies on `places[1]`."""
    from torch.nn import functional as F

    from tessera.lab.instruments.towers import categories, characters, overlap
    from tessera.world.backgrounds import TINTS

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        train, test = places
        widths = [train.features[k].shape[-1] for k in used]
        comm = COMM(config, widths, [(1, 1)] * len(used), [len(train.layers[k]) for k in used])
        sizes = {"category": len(categories()), "tint": len(TINTS), "character": characters(), "box": 4}
        heads = nn.ModuleDict({what: nn.Linear(comm.width, size) for what, size in sizes.items()})
        learned = [*comm.parameters(), *heads.parameters()]
        optimiser = torch.optim.AdamW(learned, lr=3e-3, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=STEPS)

        def seen(of: Seen, rows: Tensor) -> Tensor:
            sets = []
            for k in used:
                tokens = from_grid(of.features[k][rows], (1, 1))
                tokens.levels = tuple(layer[rows] for layer in of.layers[k])
                sets.append(tokens)
            return comm(sets).features[:, 0]

        for _ in range(STEPS):
            rows = torch.randint(len(train.category), (BATCH,))
            x = seen(train, rows)
            losses = [
                F.cross_entropy(heads[what](x), getattr(train, what)[rows], ignore_index=-100)
                for what in ("category", "tint", "character")
            ]
            things = train.category[rows] >= 0
            found = F.softplus(heads["box"](x[things]))
            losses.append(5 * F.l1_loss(found, train.box[rows][things]))
            optimiser.zero_grad()
            torch.stack(losses).sum().backward()
            optimiser.step()
            schedule.step()
        with torch.no_grad():
            x = seen(test, torch.arange(len(test.category)))
            scores = {}
            for what in ("category", "tint", "character"):
                wanted = getattr(test, what)
                scores[what] = float((heads[what](x).argmax(-1) == wanted)[wanted >= 0].float().mean())
            things = test.category >= 0
            scores["box"] = float((overlap(F.softplus(heads["box"](x[things])), test.box[things]) >= 0.5).float().mean())
        return scores
