"""Griffon: objects are located in plain text, token probabilities are scores, and absent objects are answered by "none"."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Exact, Experiment, Vary, beats, below, worse
from tessera.lab.protocols.locating import Locating, Referents

if TYPE_CHECKING:
    from tessera.lab.lab import Lab
    from tessera.parts.grounding.griffon import Codec


def notation_comes_back(lab: Lab) -> Checked:
    """200 times three random boxes through both notations; 300 damaged texts; a score worked out by hand."""
    from tessera.parts.grounding.griffon import read, score, spell
    from tessera.world.rng import Rng

    rng, codecs = Rng("griffon", "codec"), tuple["Codec", ...](("decimal", "hundredths"))
    worst, counted = dict.fromkeys(codecs, 0.0), True
    for _ in range(200):
        things = []
        for label in ("dog", "T-shirt", "fire engine"):
            x0, y0 = rng.uniform(0, 0.8), rng.uniform(0, 0.8)
            things.append((label, (x0, y0, x0 + rng.uniform(0.02, 0.2), y0 + rng.uniform(0.02, 0.2))))
        for codec in codecs:
            back = read(spell(things, codec), codec)
            counted &= [b.label for b in back] == [label for label, _ in things]
            errors = [abs(u - v) for b, (_, box) in zip(back, things, strict=False) for u, v in zip(b.box, box, strict=True)]
            worst[codec] = max(worst[codec], *errors)
    text, broken = spell(things), 0
    for _ in range(300):
        at, other = rng.below(len(text)), rng.choice("&-[],.0123456789 x")
        try:
            found = read(text[:at] + other + text[at + rng.below(9) :])
            broken += any(not 0 <= v <= 1 for f in found for v in f.box)
        except ValueError:
            broken += 1
    # One token per character: label "ab", box "0.1,0.2,0.3,0.4", every token 0.9 sure.
    line = "ab-[0.1,0.2,0.3,0.4]"
    sure = score(read(line)[0], [(i, i + 1) for i in range(len(line))], [0.9] * len(line))
    return Checked(
        checks={
            "decimals are off by at most 0.0005": worst["decimal"] <= 0.0005 + 1e-9,
            "hundredths by at most 0.01": worst["hundredths"] <= 0.0101,
            "every label comes back": counted,
            "damaged texts neither raise nor give boxes outside": broken == 0,
            "the score is the root of both products": abs(sure - 0.9**1.0 * 0.9**7.5) < 1e-12,
        },
        measured={f"{codec} differ by": value for codec, value in worst.items()},
    )


def scored(name: str, scores: str) -> Vary:
    """An arm with these scores."""
    return Vary(name, uses=("griffon",), scores=scores)


def trained(name: str, negatives: str) -> Vary:
    """An arm trained with these negatives."""
    return Vary(name, uses=("griffon",), negatives=negatives)


CLAIMS = [
    Exact(
        id="notation_comes_back",
        promise="Coordinates written as text are off by at most 0.0005, damaged texts raise nothing, and a score is the root of "
        "both products.",
        paper="sections 3.1 and 3.3",
        run=notation_comes_back,
    ),
    Experiment(
        id="scores_rank",
        promise="Precision weighted by rank is higher with token probabilities as scores than with constant scores.",
        paper="section 3.3, table 6",
        protocol=Locating(),
        metric="precision by rank",
        treatment=scored("token scores", "tokens"),
        baseline=scored("constant scores", "constant"),
        control=scored("shuffled scores", "shuffled"),
        others={"order of writing": scored("order of writing", "order")},
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(beats("order of writing"),),
        note="Every box weighs its rank: of constant scores that is the precision, and of shuffled ones on average. The "
        "reference model was trained on the lists of the world, not on this notation's prompts; its boxes are its own.",
        amended=(
            "A first look at 40 images compared with the order of writing, which ranked better (area under the ROC curve 0.76, "
            "of the scores 0.63). The paper compares with boxes without scores: this is judged, and the order reported beside.",
            "The control was the next scene's image, of which no box is right whatever the scores say; now the scores in random "
            "order.",
        ),
    ),
    Experiment(
        id="negatives",
        promise="A model gives fewer boxes for absent objects after training with questions about absent objects than after "
        "training without them.",
        paper="section 3.2",
        protocol=Referents(),
        metric="false boxes",
        treatment=trained("all scenarios", "own"),
        baseline=trained("no absent things", "none"),
        control=trained("shuffled answers", "shuffled"),
        primary=below("baseline"),
        valid_if=(below("control"), worse("control", metric="found")),
        secondary=(worse("treatment", than="baseline", metric="found"),),
        note="Half of the absent things are of a category that is there.",
    ),
]
