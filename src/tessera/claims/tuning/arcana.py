"""Arcana's MM-LoRA: visual tokens and text tokens have separate low-rank adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Checked, Exact, Experiment, Vary, beats, worse
from tessera.lab.protocols.further_training import SCENES, FurtherTraining

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def equals_token_by_token(lab: Lab) -> Checked:
    """One layer with random factors against loops over tokens; gradients of visual factors on text alone; what merging keeps."""
    import torch
    from torch import nn

    from tessera.parts.tuning.arcana import Pair

    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(12, 8)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    x, visual = torch.randn(2, 9, 12, generator=generator), torch.rand(2, 9, generator=generator) < 0.5
    pair = Pair(linear, (3, 5), 2.0, 0.0)
    pair.start(torch.Generator().manual_seed(1), 0.3)
    with torch.no_grad():
        found = linear(x) + pair(x.flatten(0, 1), visual.flatten()).view(2, 9, 8)
        apart = 0.0
        for b in range(2):
            for k in range(9):
                name = "visual" if visual[b, k] else "text"
                down, up = getattr(pair, f"{name}_down"), getattr(pair, f"{name}_up")
                wanted = linear.weight @ x[b, k] + linear.bias + 2.0 * (up @ (down @ x[b, k]))
                apart = max(apart, float((found[b, k] - wanted).abs().max()))
    pair(x.flatten(0, 1), None).square().sum().backward()
    silent = [float(p.grad.abs().max()) for p in (pair.visual_down, pair.visual_up) if p.grad is not None]
    loud = float(pair.text_up.grad.abs().max()) if pair.text_up.grad is not None else 0.0
    pair.fold(linear)
    with torch.no_grad():
        merged = linear(x) + pair(x.flatten(0, 1), visual.flatten()).view(2, 9, 8)
        text = pair(x.flatten(0, 1), torch.zeros(18, dtype=torch.bool))
    after = float((merged - found).abs().max())
    return Checked(
        checks={
            "both kinds of tokens": 0 < int(visual.sum()) < 18,
            "token by token to 1e-5": apart <= 1e-5,
            "visual factors have gradients of exactly zero on text alone": silent == [0.0, 0.0] and loud > 0,
            "merged to 1e-5": after <= 1e-5,
            "once merged, text costs nothing": not bool(text.any()),
        },
        measured={"differs by": apart, "merged differs by": after},
        shape="18 tokens, 12 -> 8, ranks 3 and 5, float32",
    )


def costs_one_branch(lab: Lab) -> Checked:
    """Counted operations that adapters add to a prefill, against plain LoRA of both ranks together; what merging leaves."""
    import torch
    from torch import nn

    from tessera.hosts.plug import plug
    from tessera.hosts.zoo import tiny
    from tessera.parts.tuning.arcana import Arcana, Pair

    made = tiny("llava")
    inputs, added, size = made.inputs((1, 1)), dict[str, float](), dict[str, int]()
    unplugged = lab.flops(lambda: made.model(**inputs))
    for mask in ("modality", "shared"):
        tuning = Arcana(Arcana.Config(rank_visual=16, rank_text=16, mask=mask))
        with plug(made.model, tuning):
            added[mask] = lab.flops(lambda: made.model(**inputs)) - unplugged
            assert tuning.pairs is not None
            size[mask] = sum(p.numel() for p in tuning.pairs.parameters())
    linear, x = nn.Linear(256, 256), torch.randn(64, 256)
    pair = Pair(linear, (16, 16), 2.0, 0.0)
    before = lab.flops(lambda: pair(x, None))
    pair.fold(linear)
    after = lab.flops(lambda: pair(x, None))
    share = added["modality"] / added["shared"]
    return Checked(
        checks={
            "as many parameters as plain LoRA": size["modality"] == size["shared"],
            "half of its added operations where ranks are equal": abs(share - 0.5) <= 0.02,
            "none on text once merged": after == 0 < before,
        },
        measured={"added operations, share of plain LoRA's": share, "parameters": float(size["modality"])},
        shape="6 layers of width 64, ranks 16 and 16",
    )


_TYPES = ("existence", "position", "attribute", "at", "category", "relation")
_FOG = {**SCENES, "corruption": "fog", "strength": 5}


def _arm(name: str, **options: Any) -> Vary:
    return Vary(name, tuning={"kind": "arcana", "rank_visual": 8, "rank_text": 24, "dropout": 0.0, **options})


CLAIMS = [
    Exact(
        id="equals_token_by_token",
        promise="Every linear layer adds the low-rank product of the token's modality, token by token, and merging keeps the "
        "outputs.",
        paper="equation 4",
        run=equals_token_by_token,
    ),
    Exact(
        id="costs_one_branch",
        promise="A token takes the operations of its own modality's adapter alone, and a generated token none once merged.",
        run=costs_one_branch,
    ),
    Experiment(
        id="learns_more_than_one_adapter",
        promise="In thick fog, accuracy is higher with an adapter for each modality than with one adapter of the same rank for "
        "all tokens.",
        paper="table 5",
        protocol=FurtherTraining(
            world=_FOG,
            types=_TYPES,
            steps=24,
            rate=2e-3,
            tests={
                "fog": {"types": _TYPES, "world": _FOG, "pictures": 100, "most": 6},
                "clear": {"types": _TYPES, "world": SCENES, "pictures": 60, "most": 6},
            },
        ),
        treatment=_arm("by modality"),
        baseline=_arm("plain LoRA", mask="shared"),
        control=_arm("tokens sent at random", mask="random"),
        others={"before": Vary("before", steps=0)},
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(beats("before"), beats("baseline", metric="clear: accuracy")),
        note="Every token meets a smaller rank than in plain LoRA, so in few steps on one task the shared one may learn faster.",
    ),
]
