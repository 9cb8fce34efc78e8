"""Flamingo: a frozen language model reads images through inserted cross-attention, the only part that is trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Build, Checked, Exact, Experiment, beats, worse
from tessera.lab.protocols.short_training import TOWER, ShortTraining

if TYPE_CHECKING:
    from tessera.lab.lab import Lab

TINY = {"kind": "flamingo", "latents": 4, "depth": 1, "heads": 2, "head_width": 8}


def identity_at_first(lab: Lab) -> Checked:
    """Logits with closed gates, images given, against those of the plain language model on the same text."""
    import torch

    from tessera.lab.composed import pictures, prefix, tiny

    model = tiny(TINY)
    ids = torch.tensor([[*prefix(model, 2), 6, 20, 7]])
    with torch.no_grad():
        mine = model(ids, pictures(2)).logits
        text_only = model.logits_of(model.model.language_model(ids).last_hidden_state)
        opened = _opened(model)(ids, pictures(2)).logits
    return Checked(
        checks={
            "logits equal bit for bit with closed gates": torch.equal(mine, text_only),
            "open gates change them": not torch.equal(opened, text_only),
        },
        measured={
            "logits differ by": float((mine - text_only).abs().max()),
            "with open gates by": float((opened - text_only).abs().max()),
        },
        shape="4 layers of width 32, float32, random weights",
    )


def last_image_only(lab: Lab) -> Checked:
    """Gradients of a block's output at each token to the latents of each of three images in one row of text."""
    import torch

    from tessera.lab.composed import IMAGE, pictures, prefix, tiny

    model = _opened(tiny({**TINY, "every": 4}))  # one block, so that nothing travels through the text itself
    image = prefix(model, 1)[1:]
    ids = torch.tensor([[1, 20, *image, 21, *image, 22, 23, *image, 24]])
    places = (ids[0] == IMAGE).nonzero().flatten().tolist()
    latents = model.get_image_features(pictures(3)).detach().requires_grad_()
    hidden: list[Any] = []
    handle = model.model.coupling.blocks[0].register_forward_hook(lambda _, args, out: hidden.append(out))
    model(ids, image_features=latents)
    handle.remove()
    sums = hidden[0][0].square().sum(-1)
    gradient = torch.stack([torch.autograd.grad(s, latents, retain_graph=True)[0].abs().sum((1, 2)) for s in sums])
    last = torch.tensor([sum(place <= t for place in places) - 1 for t in range(ids.shape[1])])
    own = last[:, None] == torch.arange(3)
    return Checked(
        checks={
            "gradient to every other image is exactly zero": float(gradient[~own].max()) == 0,
            "gradient to the last image is not": bool((gradient[own] > 0).all()),
        },
        measured={"to other images": float(gradient[~own].max()), "to the last image, least": float(gradient[own].min())},
        shape="3 images, 1 block, float32, random weights",
    )


def _opened(model: Any) -> Any:
    """The model with all gates at 1/2."""
    from torch import nn

    for block in model.model.coupling.blocks:
        for gate in (block.attention_gate, block.feed_forward_gate):
            nn.init.constant_(gate, 0.5)
    return model


BLOCKS = {"kind": "flamingo", "latents": 16, "depth": 1, "heads": 4, "head_width": 56, "every": 2, "multiple": 2}

CLAIMS = [
    Exact(
        id="identity_at_first",
        promise="Before training the language model answers as if nothing had been inserted, bit for bit.",
        paper="section 2.2",
        run=identity_at_first,
    ),
    Exact(
        id="last_image_only",
        promise="A text token attends to the last image before it and to no other.",
        paper="section 2.3, figure 7",
        run=last_image_only,
    ),
    Experiment(
        id="frozen_model_sees",
        promise="With tower and language model frozen, accuracy with the trained cross-attention blocks is higher than without "
        "the image.",
        paper="section 3.1, table 3",
        protocol=ShortTraining(
            parts={
                "encoders": [TOWER],
                "tokens": {"kind": "pixel_shuffle", "factor": 2},
                "connector": {"kind": "linear"},
                "coupling": BLOCKS,
            },
            start={"encoders.0": "object-expert", "language_model": "nano"},
            train=({"connector": 1.0, "coupling": 1.0},),
            most=4,
            steps=60,
            images=6,
            tests=("own", "mismatched image", "no image"),
        ),
        treatment=Build("blocks"),
        baseline=Build("no image", {"test": "no image"}),
        control=Build("mismatched image", {"test": "mismatched image"}),
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        note="The blocks begin with random weights, and the training is far shorter than the paper's.",
    ),
]
