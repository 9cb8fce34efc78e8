"""Matryoshka multimodal models: squares of visual tokens are averaged, and a model trained this way works with few tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Cost, Effect, Exact, Experiment, Plug, Vary, beats, worse
from tessera.lab.protocols.answering import SEEING
from tessera.lab.protocols.further_training import SCENES, FurtherTraining
from tessera.lab.protocols.prefill import Prefill

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def nests(lab: Lab) -> Checked:
    """Against transformers' own building block, torch's average pooling, on random tokens of a raster of 8 x 8."""
    import torch

    from tessera.lab.exact import same
    from tessera.nn.layout import Block, Layout
    from tessera.nn.raster import raster
    from tessera.parts.tokens.m3 import pooled, squares

    tokens = torch.randn(64, 5, generator=torch.Generator().manual_seed(0))
    image = tokens.view(1, 8, 8, 5).permute(0, 3, 1, 2)
    once, _, _ = squares(raster([[Layout(64, (Block(0, 8, 8),))]]), 2)
    again, _, _ = squares(raster([[Layout(16, (Block(0, 4, 4),))]]), 2)
    direct, _, _ = squares(raster([[Layout(64, (Block(0, 8, 8),))]]), 4)
    two, four = pooled(pooled(tokens, once), again), pooled(tokens, direct)
    plain = torch.nn.functional.avg_pool2d(image, 4).permute(0, 2, 3, 1).reshape(-1, 5)
    nesting, parity = float((two - four).abs().max()), float((four - plain).abs().max())
    return same({"nests": nesting < 1e-6, "is average pooling": parity < 1e-6}, nesting=nesting, pooling=parity)


def pools_what_enters(lab: Lab) -> Checked:
    """What enters the first layer of a host, against average pooling of the projector's output as the plain host makes it."""
    import torch

    from tessera.hosts.zoo import tiny
    from tessera.lab.exact import places, prefilled, same

    made, entered = tiny("llava"), []
    inputs, layer = made.inputs((1, 1)), "model.language_model.layers.0"

    def hook(module: torch.nn.Module, args: tuple[torch.Tensor, ...], kwargs: dict[str, torch.Tensor]) -> None:
        entered.append(args[0] if args else kwargs["hidden_states"])

    with torch.no_grad():
        handle = made.model.get_submodule(layer).register_forward_pre_hook(hook, with_kwargs=True)
        made.model(**inputs)
        handle.remove()
    worst, counts = 0.0, []
    with prefilled("llava", "m3", {"factor": 4}) as (host, sequence):
        handle = host.model.get_submodule(layer).register_forward_pre_hook(hook, with_kwargs=True)
        host.model(**inputs)
        handle.remove()
        for row, found in enumerate(places(sequence, 0)):
            raster = entered[0][row, sequence.visual[row]].view(1, 8, 8, -1).permute(0, 3, 1, 2)
            wanted = torch.nn.functional.avg_pool2d(raster, 4)[0].flatten(1).T
            given = entered[-1][row, sequence.stages[0].visual[row]]
            counts.append(len(found))
            worst = max(worst, float((given - wanted).abs().max()))
    return same(
        {"4 of 64 tokens": counts == [4, 4], "average pooling to a millionth": worst < 1e-6},
        shape="LLaVA with random weights, 2 prompts",
        pooled=worst,
    )


_ASKED = {"types": SEEING, "world": SCENES, "pictures": 80, "most": 6}
_POOLED = {f"squares of {side}": {**_ASKED, "plug": {"m3": {"factor": side}}} for side in (1, 2, 4, 7)}
_MATRYOSHKA = tuple({"m3": {"factor": side}} for side in (1, 2, 4, 7))
_SAMPLED = tuple({"uniform": {"keep": (share,)}} for share in (1.0, 0.25, 0.082, 0.021))
"""As many tokens as at the scales (196, 49, 16 and 4), spread as evenly and nested as they are, none of them a mean."""

CLAIMS = [
    Exact(
        id="nests",
        promise="Pooling twice by 2 equals pooling once by 4, and is average pooling.",
        paper="section 3",
        run=nests,
    ),
    Exact(
        id="pools_what_enters",
        promise="The language model reads the average-pooled output of the projector and nothing else of the image.",
        paper="section 3",
        run=pools_what_enters,
    ),
    Experiment(
        id="reads_pooled_tokens",
        promise="With 16 of 196 tokens, the accuracy of a model trained on all scales is higher than that of one trained on all "
        "tokens and pooled at test time.",
        paper="table 2",
        protocol=FurtherTraining(
            types=SEEING,
            steps=48,
            tests={**_POOLED, "squares of 4, mismatched": {**_POOLED["squares of 4"], "image": "mismatched"}},
            scales=tuple(_POOLED),
        ),
        treatment=Vary("all scales", uses=("m3",), plugs=_MATRYOSHKA, test="squares of 4"),
        baseline=Vary("all tokens", uses=("m3",), plugs=_MATRYOSHKA[:1], test="squares of 4"),
        control=Vary("as few tokens, not pooled", uses=("uniform",), plugs=_SAMPLED, test="squares of 4"),
        others={
            "before": Vary("before", steps=0, uses=("m3",), test="squares of 1"),
            "mismatched image": Vary(
                "all scales, mismatched image", uses=("m3",), plugs=_MATRYOSHKA, test="squares of 4, mismatched"
            ),
        },
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(
            Effect(
                (("treatment", "best scale", 1.0), ("treatment", "fixed scale", -1.0)),
                "the best scale for each question is above the best one for all",
            ),
            beats("baseline", metric="squares of 7: accuracy"),
            beats("before", metric="squares of 1: accuracy"),
        ),
        note="A short training, one scale a step in turn: the authors train on all scales from the beginning. The control is "
        "trained with as many tokens at every step, single ones in place of means, and asked with means.",
    ),
    Cost(
        id="saves_operations",
        promise="144 of 576 visual tokens take fewer operations than all of them.",
        paper="table 7",
        protocol=Prefill(),
        treatment=Plug("m3", factor=2),
        saves=("flop ratio",),
        amended=("First at least 1, which no saving at all would have passed.",),
    ),
]
