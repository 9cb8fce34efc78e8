"""EVE: distillation from a frozen encoder makes a language model without an encoder learn faster from images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Build, Checked, Exact, Experiment, beats, worse
from tessera.lab.protocols.short_training import TOWER, ShortTraining

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tessera.lab.lab import Lab

TINY: dict[str, Any] = {
    "kind": "eve", "image_size": 32, "patch_size": 4, "width": 16, "heads": 2, "every": 2,
    "teacher": {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "heads": 2},
}  # fmt: skip


def equals_loops(lab: Lab) -> Checked:
    """Against loops over windows, heads and tokens, on a raster that is not square."""
    import torch
    from torch import nn

    from tessera.parts.couplings.eve.layers import PatchAligning, PatchEmbedding

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        embedding, aligning = PatchEmbedding(16, 4, 2, 2).double(), PatchAligning(8, 12, 3, 2).double()
        for parameter in (*embedding.parameters(), *aligning.parameters()):
            nn.init.normal_(parameter, std=0.3)
        pixels, levels = torch.randn(2, 3, 16, 24).double(), [torch.randn(5, 8).double() for _ in range(3)]
        embedded = float((embedding(pixels) - looped_embedding(embedding, pixels)).abs().max())
        aligned = float((aligning(levels) - looped_aligning(aligning, levels)).abs().max())
    return Checked(
        checks={"patch embedding within 1e-9": embedded <= 1e-9, "patch aligning within 1e-9": aligned <= 1e-9},
        measured={"embeddings differ by": embedded, "aligned features differ by": aligned},
        shape="width 16, 2 x 3 windows; width 8, 3 levels; float64, random weights",
    )


def looped_query(module: Any, token: Tensor, tokens: Tensor) -> Tensor:
    """A token [D] attends to a set [s, D], head by head -> [D]; the scale is that of the whole width."""
    import torch

    query, both = module.query(token), module.key_value(tokens)
    width, found = len(token), []
    step = width // module.heads
    for at in range(0, width, step):
        key, value = both[:, at : at + step], both[:, width + at : width + at + step]
        found.append((key @ query[at : at + step] / width**0.5).softmax(0) @ value)
    return token + module.out(torch.cat(found))


def looped_embedding(module: Any, pixels: Tensor) -> Tensor:
    """Pixels [M, 3, H, W] -> [M, h (w + 1) + 1, D], window by window."""
    import torch

    images = []
    for patches in module.patches(pixels):
        side, rows = module.window, []
        for y in range(0, patches.shape[1], side):
            for x in range(0, patches.shape[2], side):
                inside = patches[:, y : y + side, x : x + side].flatten(1).T
                rows.append(looped_query(module.local, inside.mean(0), inside))
        overall = looped_query(module.whole, module.class_token, torch.stack(rows))
        width = patches.shape[2] // side
        lines = [torch.stack([*rows[i : i + width], module.row_end]) for i in range(0, len(rows), width)]
        images.append(torch.cat([overall[None], *lines]))
    return torch.stack(images)


def looped_aligning(module: Any, levels: Sequence[Tensor]) -> Tensor:
    """Hidden states [N, E] of some levels, the last layer's first -> [N, C], token by token and head by head."""
    import torch

    tokens = []
    for n in range(len(levels[0])):
        query, *others = (project(level[n]) for project, level in zip(module.levels, levels, strict=True))
        read = torch.stack(others)
        step, found = len(query) // module.heads, []
        for at in range(0, len(query), step):
            part = read[:, at : at + step]
            found.append((part @ query[at : at + step] / len(query) ** 0.5).softmax(0) @ part)
        tokens.append(module.last(levels[0][n]) + module.out(torch.cat(found)))
    return torch.stack(tokens)


def teacher_is_for_training(lab: Lab) -> Checked:
    """A model without a teacher takes the weights of one that had it and answers as it does; with the teacher the loss has one
    more term, whose gradient reaches the patch embedding and not the teacher."""
    import torch

    from tessera.lab.composed import pictures, prefix, tiny

    distilled, plain = tiny(TINY), tiny({**TINY, "teacher": None}, seed=1)
    for name in ("coupling", "language_model"):
        plain.sockets()[name].load_state_dict(distilled.sockets()[name].state_dict())
    ids, images = torch.tensor([[*prefix(plain, 2), 6, 20, 7]]), pictures(2)
    labels = ids.where(ids >= 6, -100)
    with torch.no_grad():
        same = torch.equal(distilled(ids, images).logits, plain(ids, images).logits)
    loss = distilled.train()(ids, images, labels=labels).loss
    loss.backward()
    more = float(loss.detach() - plain.train()(ids, images, labels=labels).loss.detach())
    coupling = distilled.model.coupling
    return Checked(
        checks={
            "without the teacher the answers are the same, bit for bit": same,
            "the loss is greater, by 2 at most": 0 < more < 2,
            "the teacher gets no gradient, the patch embedding does": all(p.grad is None for p in coupling.teacher.parameters())
            and float(coupling.embedding.patches.weight.grad.abs().max()) > 0,
        },
        measured={"the teacher's term": more},
        shape="4 layers of width 32, 2 images of 32 pixels, float32, random weights",
    )


FRONT: dict[str, Any] = {"kind": "eve", "width": 96, "heads": 4, "every": 1, "teacher": dict(TOWER)}

CLAIMS = [
    Exact(
        id="equals_loops",
        promise="Patch embedding and patch aligning equal their equations, within 1e-9.",
        paper="section 3.1, equations 1 to 3",
        run=equals_loops,
    ),
    Exact(
        id="teacher_is_for_training",
        promise="The frozen encoder adds a term to the loss and is removed after training: answers without it are the same.",
        paper="section 3.1",
        run=teacher_is_for_training,
    ),
    Experiment(
        id="aligning_helps",
        promise="After as many steps, accuracy is higher with alignment to a frozen encoder's features than without it.",
        paper="section 4.3, figure 5",
        protocol=ShortTraining(
            parts={"coupling": FRONT},
            start={"teacher": "object-expert"},
            train=({"*": 1.0},),
            steps=150,
            tests=("own", "mismatched image"),
        ),
        treatment=Build("teacher"),
        baseline=Build("no teacher", coupling={**FRONT, "teacher": None}),
        control=Build("random teacher", {"fresh": ("teacher",)}),
        others={"mismatched image": Build("teacher, mismatched image", {"test": "mismatched image"})},
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        note="The language model begins with random weights and sees a few thousand pictures; the paper's is a trained one that "
        "sees 35 million. Being drawn to a random encoder can help too (arXiv:2006.07733 learns from one): the control shows "
        "what is owed to any target made from the image, and the trained encoder has to give more.",
    ),
]
