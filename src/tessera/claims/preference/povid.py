"""POVID: right answers are preferred to injected mistakes and to what a noised image makes the model say."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Exact, Experiment, Vary, beats, below, worse
from tessera.lab.givens.answers import SaysYes
from tessera.lab.protocols.answering import SEEING
from tessera.lab.protocols.further_training import SCENES, FurtherTraining

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def equals_the_formula(lab: Lab) -> Checked:
    """Packed sequences of random likelihoods against every sequence by itself, both preferences on."""
    import torch
    from torch import Tensor

    from tessera.lab.speaker import rows_of, speakers
    from tessera.parts.preference.povid import POVID
    from tessera.world import World

    policy, reference, processor = speakers()
    part = POVID(POVID.Config(beta=0.3, inject=0.4, noise=0.6, questions=1))
    batch = part.collate([World(split="train", width=64, height=64, things=(1, 3))], processor, 2)(range(2))
    beta, total, units = 0.3, torch.zeros(()), 0
    for row in range(len(batch["input_ids"])):
        image, blurred = batch["pixel_values"][row : row + 1], batch["noised_pixel_values"][row : row + 1]
        sequences = rows_of(batch, row)
        for right, wrong in zip(sequences[::2], sequences[1::2], strict=True):
            ratios: list[Tensor] = []
            for tokens, places, labels in (right, wrong):
                ratios.append(torch.zeros(()))
                for model, sign in ((policy, 1.0), (reference, -1.0)):
                    likelihood = model(torch.tensor([tokens]), image).logits[0].log_softmax(-1)
                    ratios[-1] = ratios[-1] + sign * sum(likelihood[p - 1, y] for p, y in zip(places, labels, strict=True))
            own = torch.zeros(())
            for model, sign in ((policy, 1.0), (reference, -1.0)):
                tokens, places, _ = right
                said = model(torch.tensor([tokens]), blurred).logits[0].argmax(-1)
                likelihood = model(torch.tensor([tokens]), image).logits[0].log_softmax(-1)
                own = own + sign * sum(likelihood[p - 1, said[p - 1]] for p in places)
            total = total + 0.4 * torch.log1p(torch.exp(-beta * (ratios[0] - ratios[1])))
            total = total + 0.6 * torch.log1p(torch.exp(-beta * (ratios[0] - own)))
            units += 1
    ours = part.loss(policy, batch, reference)
    loss, naive = ours.loss_sum / ours.loss_weight, total / units
    gradients = [torch.autograd.grad(x, list(policy.parameters())) for x in (loss, naive)]
    apart = max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True))
    off = abs(float(loss.detach() - naive.detach()))
    return Checked(
        checks={"loss to 1e-5": off <= 1e-5, "gradients to 1e-5": apart <= 1e-5, "some answers": units > 2},
        measured={"loss differs by": off, "gradients differ by": apart},
        shape="2 images, 2 pairs of answers each, random likelihoods, float32",
    )


def noise_is_a_diffusion(lab: Lab) -> Checked:
    """Signal and noise by their definition, with the product written out."""
    import math

    from tessera.parts.preference.povid import STEPS, signal_and_noise

    apart, before, falls, kept = 0.0, 1.0, True, 1.0
    for step in range(STEPS):
        kept *= 1 - ((0.5e-2 - 1e-5) / (1 + math.exp(6 - 12 * step / (STEPS - 1))) + 1e-5)
        if step % 100 == 99:
            signal, spread = signal_and_noise(step)
            apart = max(apart, abs(signal - kept**0.5), abs(signal**2 + spread**2 - 1))
            falls, before = falls and signal < before, signal
    return Checked(
        checks={"to 1e-5": apart <= 1e-5, "the signal falls": falls},
        measured={"differs by": apart, "signal left at step 500": signal_and_noise(500)[0]},
    )


def _arm(name: str, **options: object) -> Vary:
    return Vary(name, objective={"kind": "povid", "questions": 1, **options})


CLAIMS = [
    Exact(
        id="equals_the_formula",
        promise="The loss and its gradients equal a reference written from the paper's formula.",
        paper="equations 3 to 5",
        run=equals_the_formula,
    ),
    Exact(
        id="noise_is_a_diffusion",
        promise="The noise keeps the variance, and hides more of the image from step to step.",
        paper="section 3.2",
        run=noise_is_a_diffusion,
    ),
    Experiment(
        id="sees_what_is_there",
        promise="For a model that says yes too often, accuracy on questions about existence is higher after both preferences "
        "than before.",
        paper="table 1",
        protocol=FurtherTraining(
            model="nano-yes",
            steps=12,
            tests={
                "there": {"types": ("existence",), "world": SCENES, "pictures": 100, "most": 4},
                "seeing": {"types": SEEING, "world": SCENES, "pictures": 60, "most": 6},
            },
        ),
        given=(SaysYes(model="nano-yes"),),
        treatment=_arm("both preferences"),
        baseline=Vary("before", steps=0),
        control=_arm("random preferences", swapped=0.5),
        others={"injected alone": _arm("injected alone", inject=1.0, noise=0.0)},
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(
            below("baseline", metric="tempted"),
            beats("injected alone"),
            beats("baseline", metric="seeing: accuracy"),
        ),
        note="tempted is the share of yes to what is not there. Mistakes are injected into a list and a short answer of each "
        "image; tokens under noise are scored one by one, so a short answer has few of them.",
    ),
]
