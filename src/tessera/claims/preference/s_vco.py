"""S-VCO: each image of a pair must make its own answer likelier than no image does, and the other's less likely."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Checked, Exact, Experiment, Vary, beats, below, worse
from tessera.lab.givens.answers import SaysYes
from tessera.lab.protocols.further_training import SCENES, FurtherTraining

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.lab.lab import Lab


def _literal(logits: Any, batch: Mapping[str, Tensor], betas: Sequence[float]) -> Tensor:
    """The loss written out: `logits(model, tokens, image or None)` of every sequence by itself, model 0 policy, 1 reference."""
    import torch

    from tessera.lab.speaker import rows_of

    total, units = torch.zeros(()), 0
    for pair in range(len(batch["input_ids"]) // 3):
        images = (batch["pixel_values"][2 * pair], batch["pixel_values"][2 * pair + 1], None)
        sequences = [rows_of(batch, 3 * pair + i) for i in range(3)]

        def likelihood(image: int, answer: int, images: Any = images, sequences: Any = sequences) -> Tensor:
            tokens, places, labels = sequences[image][answer]
            policy, frozen = (logits(m, tokens, images[image]).log_softmax(-1) for m in (0, 1))
            return sum((policy[p - 1, y] - frozen[p - 1, y] for p, y in zip(places, labels, strict=True)), torch.zeros(()))

        for question in range(len(sequences[0]) // 2):
            first, second = 2 * question, 2 * question + 1
            ratios = [
                likelihood(0, first) - likelihood(2, first),
                likelihood(2, first) - likelihood(1, first),
                likelihood(1, second) - likelihood(2, second),
                likelihood(2, second) - likelihood(0, second),
            ]
            for beta, ratio in zip(betas, ratios, strict=True):
                total = total + torch.log1p(torch.exp(-beta * ratio))
            units += 1
    return total / units


def equals_the_formula(lab: Lab) -> Checked:
    """Packed sequences of random likelihoods against every sequence by itself."""
    import torch

    from tessera.lab.speaker import speakers
    from tessera.parts.preference.s_vco import SVCO
    from tessera.world import World

    policy, reference, processor = speakers()
    part = SVCO(SVCO.Config(betas=(0.1, 0.2, 0.3, 0.4), questions=2))
    batch = part.collate([World(split="train", width=64, height=64)], processor, 2)(range(2))

    def logits(model: int, tokens: list[int], image: Tensor | None) -> Tensor:
        found: Tensor = (policy, reference)[model](torch.tensor([tokens]), None if image is None else image[None]).logits[0]
        return found if model == 0 else found.detach()

    ours = part.loss(policy, batch, reference)
    loss = ours.loss_sum / ours.loss_weight
    naive = _literal(logits, batch, part.config.betas)
    gradients = [torch.autograd.grad(x, list(policy.parameters())) for x in (loss, naive)]
    apart = max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True))
    off = abs(float(loss.detach() - naive.detach()))
    return Checked(
        checks={"loss to 1e-5": off <= 1e-5, "gradients to 1e-5": apart <= 1e-5},
        measured={"loss differs by": off, "gradients differ by": apart},
        shape="2 pairs of images, 2 questions each, random likelihoods, float32",
    )


def begins_neutral(lab: Lab) -> Checked:
    """A policy that equals its reference: every one of the four terms is log 2."""
    import math

    from tessera.lab.speaker import speakers
    from tessera.parts.preference.s_vco import SVCO
    from tessera.world import World

    policy, _, processor = speakers()
    part = SVCO(SVCO.Config())
    batch = part.collate([World(split="train", width=64, height=64)], processor, 1)(range(1))
    loss = part.loss(policy, batch, policy)
    off = abs(float(loss.loss_sum.detach() / loss.loss_weight) - 4 * math.log(2))
    return Checked(checks={"4 log 2": off <= 1e-6}, measured={"differs by": off})


def _arm(name: str, **options: Any) -> Vary:
    return Vary(name, objective={"kind": "s_vco", "questions": 2, **options})


CLAIMS = [
    Exact(
        id="equals_the_formula",
        promise="The loss and its gradients equal a reference written from the paper's formula.",
        paper="equations 4 to 7",
        run=equals_the_formula,
    ),
    Exact(
        id="begins_neutral",
        promise="Before training every term of the loss is log 2.",
        paper="equations 4 to 7",
        run=begins_neutral,
    ),
    Experiment(
        id="tells_pairs_apart",
        promise="A model that says yes too often answers both images of a pair rightly more often after S-VCO than after DPO on "
        "the same pairs.",
        paper="table 1",
        protocol=FurtherTraining(
            model="nano-yes",
            world={"kinds": {"pair": 1.0}},
            steps=12,
            batch=2,
            tests={
                "pairs": {"world": {"kinds": {"pair": 1.0}}, "pictures": 160},
                "there": {"types": ("existence",), "world": SCENES, "pictures": 80, "most": 4},
            },
        ),
        given=(SaysYes(model="nano-yes"),),
        treatment=_arm("S-VCO"),
        baseline=_arm("DPO", form="dpo"),
        control=_arm("S-VCO, random negatives", negatives="random"),
        others={"before": Vary("before", steps=0)},
        metric="both right",
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(
            beats("before"),
            below("before", metric="tempted"),
            below("baseline", metric="tempted"),
            beats("before", metric="there: accuracy"),
            below("before", metric="there: tempted"),
        ),
        note="tempted is the share of answers that are right for the other picture of the pair. The control is S-VCO whose "
        "answers are contradicted by a picture of another pair: the same loss without images that differ in one thing.",
    ),
]
