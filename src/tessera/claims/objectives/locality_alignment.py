"""Locality alignment: after a stage without labels each patch says more of what it shows, and the image as much as before."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Checked, Exact, Experiment, Use, Vary, beats, worse
from tessera.lab.protocols.post_training import PostTraining

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.lab.lab import Lab


def uniform_masks(lab: Lab) -> Checked:
    """The number of shown patches over many draws: chi-square against the uniform distribution, 1 % level."""
    import numpy as np
    from scipy import stats

    from tessera.parts.objectives.locality_alignment import draw_masks

    patches, draws = 16, 6800
    masks = np.stack([draw_masks((7, i), patches) for i in range(draws)])
    counts = np.bincount(masks[:, 0].sum(1).astype(int), minlength=patches + 1)
    expected = draws / (patches + 1)
    chi = float(((counts - expected) ** 2 / expected).sum())
    critical = float(stats.chi2.ppf(0.99, patches))
    each = masks[:, 0].mean(0)
    return Checked(
        checks={
            "as many patches are shown equally often": chi < critical,
            "every patch is shown in half of the masks, within 3 %": bool((abs(each - 0.5) < 0.03).all()),
            "the second is the complement": bool((masks[:, 0] + masks[:, 1] == 1).all()),
            "the third shows all": bool((masks[:, 2] == 1).all()),
        },
        measured={"chi-square": chi, "chi-square at 1 %": critical},
        shape=f"{draws} masks of {patches} patches",
    )


def written_out(lab: Lab) -> Checked:
    """A tiny encoder, image by image and mask by mask: the teacher sees pixels that loops have masked, embeddings are masked by
    hand, the decoder's attention is its formula. No gradient reaches the teacher."""
    import numpy as np
    import torch
    from torch import nn

    from tessera.models.configuration import TesseraVisionConfig
    from tessera.models.vision import TesseraVisionModel
    from tessera.parts.objectives.locality_alignment import LocalityAlignment, draw_masks

    torch.manual_seed(0)
    encoder = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 16, "depth": 3, "heads": 2}
    model: Any = TesseraVisionModel(TesseraVisionConfig(encoder=encoder)).eval()
    ours = LocalityAlignment(LocalityAlignment.Config(heads=2, depth=2, scale=0.5))
    ours.prepare(model, None)
    nn.init.normal_(ours.head.weight, std=0.3)
    pixels = torch.randn(2, 3, 32, 32)
    masks = torch.from_numpy(np.stack([draw_masks((1, i), 16) for i in range(2)]))
    loss = ours.loss(model, {"pixel_values": pixels, "masks": masks}, None)
    with torch.no_grad():
        naive = float(np.mean([_naive(ours, model, pixels[b], masks[b, r]) for b in range(2) for r in range(3)]))
    off = abs(float((loss.loss_sum / loss.loss_weight).detach()) - naive)
    loss.loss_sum.backward()
    reached = any(p.grad is not None and bool(p.grad.any()) for p in model.encoder.parameters())
    leaks = any(p.grad is not None for p in ours.teacher.parameters())
    return Checked(
        checks={"the loss within 1e-5": off <= 1e-5, "the encoder gets a gradient, the teacher none": reached and not leaks},
        measured={"differs by": off, "loss": naive},
        shape="2 images of 16 patches, 3 masks each, float32",
    )


def _naive(ours: Any, model: Any, pixels: Tensor, mask: Tensor) -> float:
    """The loss of one image and one mask."""
    import copy

    import torch

    shown = pixels.clone()
    for patch in range(16):
        if not mask[patch]:
            row, column = divmod(patch, 4)
            shown[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 0
    teacher = copy.deepcopy(model.encoder)
    teacher.blocks = teacher.blocks[:-1]
    wanted = (teacher(shown[None])[0] - ours.mean) / ours.deviation
    embedded = ours.head(model.encoder(pixels[None])[0])
    x = torch.stack([e if m else torch.zeros_like(e) for e, m in zip(embedded, mask, strict=True)])
    x = x + ours.decoder.position
    for block in ours.decoder.blocks:
        query, key, value = block.attention.qkv(block.norm1(x)).view(16, 3, 2, 8).permute(1, 2, 0, 3)
        weights = (query @ key.transpose(1, 2) / 8**0.5).softmax(-1)
        x = x + block.scale1 * block.attention.out((weights @ value).transpose(0, 1).reshape(16, 16))
        x = x + block.scale2 * block.mlp(block.norm2(x))
    found = ours.decoder.out(ours.decoder.norm(x))
    return float((found - wanted).square().mean())


CLAIMS = [
    Exact(
        id="uniform_masks",
        promise="Masks show 0 to N patches equally often, each with its complement and with the mask that shows all.",
        paper="section 3.2",
        run=uniform_masks,
    ),
    Exact(
        id="written_out",
        promise="Teacher, decoder and loss equal a reference written from the paper's description.",
        paper="equation 3",
        run=written_out,
    ),
    Experiment(
        id="patches_say_more",
        promise="The accuracy of a linear probe of single patches is higher after the stage than before it.",
        paper="section 4, table 1",
        protocol=PostTraining(),
        metric="patch",
        treatment=Use("locality_alignment"),
        baseline=Vary("before"),
        control=Use("locality_alignment", shuffled=True),
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(beats("baseline", metric="image"), beats("baseline", of="control")),
        note="In the control the teacher sees other patches than the student, which rewards no locality.",
    ),
]
