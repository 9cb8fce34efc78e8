"""FILIP: comparing every patch with every word retrieves captions and localises objects better than one vector for each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Cost, Exact, Experiment, Paper, Use, Vary, beats, worse
from tessera.lab.protocols.contrastive import Contrastive
from tessera.lab.protocols.operations import Operations

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def loops(lab: Lab) -> Checked:
    """Random tokens with padding on either side against three nested loops, scored together, alone and with all tokens kept; the
    tokens that are kept against a search, pair by pair."""
    import math

    import torch

    from tessera.models.contrast import Embedded
    from tessera.parts.contrastive.filip import FILIP, select

    generator = torch.Generator().manual_seed(0)
    part = FILIP(FILIP.Config(), 8, 6)
    images = Embedded(torch.randn(4, 7, 6, generator=generator), torch.rand(4, 7, generator=generator) > 0.2).unit()
    texts = Embedded(torch.randn(5, 9, 6, generator=generator), torch.rand(5, 9, generator=generator) > 0.4).unit()
    with torch.no_grad():
        per_image, per_text = part.similarity(images, texts)
        apart = [part.similarity(images[i : i + 1], texts) for i in range(4)]
        kept = part.similarity(*select(images, texts, 1.0))
        few = select(images, texts, 0.4)
    gap = all_kept = alone = 0.0
    best = [[-1.0] * 7 for _ in range(4)]
    for i in range(4):
        for x in range(5):
            cosine = images.vectors[i][images.there[i]] @ texts.vectors[x][texts.there[x]].t()
            words = [max(float(c) for c in row) for row in cosine]
            patches = [max(float(c) for c in column) for column in cosine.t()]
            gap = max(gap, abs(sum(words) / len(words) - float(per_image[i, x])))
            gap = max(gap, abs(sum(patches) / len(patches) - float(per_text[x, i])))
            alone = max(alone, abs(float(apart[i][0][0, x] - per_image[i, x])), abs(float(apart[i][1][x, 0] - per_text[x, i])))
            all_kept = max(all_kept, abs(float(kept[0][i, x] - per_image[i, x])))
            for place, value in zip(images.there[i].nonzero()[:, 0].tolist(), words, strict=True):
                best[i][place] = max(best[i][place], value)
    chosen = True
    for i in range(4):
        places = images.there[i].nonzero()[:, 0].tolist()
        wanted = sorted(places, key=lambda place: -best[i][place])[: max(1, math.ceil(0.4 * len(places)))]
        found = few[0].vectors[i][few[0].there[i]]
        chosen &= len(found) == len(wanted) and bool(torch.equal(found, images.vectors[i][wanted]))
    directions = float((per_image - per_text.t()).abs().mean())
    return Checked(
        checks={
            "equal to the loops within 1e-6": gap < 1e-6,
            "image by image the same within 1e-6": alone < 1e-6,
            "keeping all tokens changes nothing": all_kept < 1e-6,
            "the tokens with the highest similarity are kept": chosen,
            "the two directions differ": directions > 1e-3,
        },
        measured={
            "differs by": gap,
            "alone differs by": alone,
            "all kept differs by": all_kept,
            "mean difference of the directions": directions,
        },
        shape="4 images of up to 7 tokens, 5 texts of up to 9, 6 channels, float32",
    )


CLAIMS = [
    Exact(
        id="loops",
        promise="The similarity, in both directions, and the choice of tokens equal their equations.",
        paper="equations 4 and 5, section 3.1",
        run=loops,
    ),
    Experiment(
        id="finds_captions",
        promise="The caption of an image is retrieved more often by token-wise similarity than by one vector for image and text.",
        paper="tables 2 and 3",
        protocol=Contrastive(),
        metric="caption",
        treatment=Use("filip"),
        baseline=Use("clip"),
        control=Use("filip", captions="shuffled"),
        others={"mean vector": Use("filip", read="mean")},
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(beats("baseline", metric="image"), beats("mean vector"), beats("baseline", metric="accuracy")),
        note="Both learn over the same frozen tower, which was trained to name patches of other things.",
    ),
    Experiment(
        id="points_at_things",
        promise="The patch most similar to an object's name lies on the object more often than with CLIP's patches.",
        paper="figure 2",
        protocol=Contrastive(),
        metric="pointing",
        treatment=Use("filip"),
        baseline=Use("clip"),
        control=Use("filip", read="other name"),
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        note="CLIP's patches are what its pooling makes of each patch alone; the control says the name of another thing.",
    ),
    Cost(
        id="fewer_tokens",
        promise="A quarter of the tokens of each side takes a quarter of the memory and at most a quarter of the operations.",
        paper="section 3.1: the 25 % of tokens with the highest similarity",
        protocol=Operations(),
        treatment=Vary("late interaction", uses=("filip",), keep=0.25),
        baseline=Vary("late interaction", uses=("filip",)),
        at_least={"flop ratio": Paper(4.0, "section 3.1, 25 % of the tokens")},
        at_most={"byte ratio": Paper(0.25, "section 3.1, 25 % of the tokens")},
    ),
]
