"""EViT: patches that get little attention from the class token can be dropped inside the tower."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Checked, Cost, Exact, Experiment, Paper, Use, Vary, beats, worse
from tessera.lab.protocols.backbone import TowerDropping
from tessera.lab.protocols.operations import Operations

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.lab.lab import Lab


def plain_tower(lab: Lab) -> Checked:
    """The tower of a tiny LLaVA, written down block by block and image by image, at keep 0.5 behind both blocks that are read."""
    import torch

    from tessera.hosts.plug import plug
    from tessera.hosts.zoo import tiny
    from tessera.lab.exact import same

    made = tiny("llava")
    tower, pixels = made.model.get_submodule("model.vision_tower"), made.inputs((1, 1))["pixel_values"]
    with torch.no_grad():
        wanted = torch.cat([_one(tower, image[None], 0.5, (0, 1)) for image in pixels])
        with plug(made.model, "evit", keep=0.5, blocks=(0, 1)):
            found = tower(pixel_values=pixels).last_hidden_state
    worst = float((found - wanted).abs().max()) if found.shape == wanted.shape else math.inf
    return same({"equal to 1e-5": worst < 1e-5}, shape="LLaVA with random weights, 2 images", tokens=worst)


def _one(tower: Any, pixels: Tensor, keep: float, blocks: tuple[int, ...]) -> Tensor:
    """The last hidden state [1, n, D] of a CLIP tower for one image: between attention and MLP the patches are ranked."""
    import torch

    hidden = tower(pixel_values=pixels, output_hidden_states=True).hidden_states[0]
    for number, block in enumerate(tower.encoder.layers):
        states, attention = block.layer_norm1(hidden), block.self_attn
        residual = hidden + attention(hidden_states=states, attention_mask=None)[0]
        if number in blocks:
            size = states.shape[2] // attention.num_heads
            query, key = attention.q_proj(states)[0], attention.k_proj(states)[0]
            score = torch.zeros(len(key) - 1)
            for head in range(attention.num_heads):
                own = slice(head * size, (head + 1) * size)
                score += (key[:, own] @ query[0, own] * attention.scale).softmax(0)[1:] / attention.num_heads
            ranked = sorted(range(len(score)), key=lambda patch: (-float(score[patch]), patch))
            count = math.ceil(keep * len(score))
            rows = [residual[0, 0], *(residual[0, 1 + patch] for patch in sorted(ranked[:count]))]
            rows.append(torch.stack([score[patch] * residual[0, 1 + patch] for patch in ranked[count:]]).sum(0))
            residual = torch.stack(rows)[None]
        hidden = residual + block.mlp(block.layer_norm2(residual))
    found: Tensor = hidden
    return found


CLAIMS = [
    Exact(
        id="plain_tower",
        promise="The hooks compute what a plain forward over the remaining tokens computes, the fused token included.",
        paper="section 3.2",
        run=plain_tower,
    ),
    Experiment(
        id="class_token_chooses",
        promise="Without further training, accuracy with patches chosen by the class token is higher than with as many random "
        "patches.",
        paper="section 4, tables 1 and 2",
        protocol=TowerDropping(),
        treatment=Use("evit", keep=0.3),
        baseline=Use("evit", keep=0.3, choice="random"),
        control=Use("evit", keep=0.05, choice="random", fuse=False),
        others={"all patches": Use("evit", keep=1.0), "seven of ten": Use("evit", keep=0.7)},
        primary=beats("baseline"),
        valid_if=(worse("control", than="all patches"),),
        secondary=(beats("all patches", of="seven of ten"),),
        amended=(
            "The thing filled so much of the picture that seven random patches of 64 kept 92 of 94 points, and 12 seeds did not "
            "tell the choices apart: the scene is shown at half its size, somewhere in the picture, and the tower learns longer, "
            "for it learns nothing of that in 300 steps.",
        ),
        note="Of 64 patches 20 and then 7 go on; in the control 4 and then 1, chosen at random and without the fused token.",
    ),
    Cost(
        id="saves",
        promise="DeiT-S takes 1.5 times fewer operations when 0.7 of the patches are kept in three places.",
        paper="table 1",
        protocol=Operations(),
        treatment=Vary("tower", uses=("evit",), keep=0.7),
        baseline=Vary("tower", uses=("evit",), keep=1.0),
        at_least={"flop ratio": Paper(1.49, "table 1: 4.6 and 3.0 billion, as they are rounded at least 4.55 / 3.05")},
        amended=(
            "It compared operations with the abstract's 1.5 of the speed, and counted the protocol's own loop over blocks, which "
            "computes queries and keys of three blocks twice, in place of the part's hooks.",
        ),
    ),
]
