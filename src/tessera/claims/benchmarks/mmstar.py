"""MMStar: questions that models answer without the image are dropped; the others measure what a model gains from the image."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Effect, Exact, Experiment, Vary, beats, worse
from tessera.lab.protocols.leakage import Leaked
from tessera.lab.protocols.planted import Choices, QuestionSelection

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def formulas(lab: Lab) -> Checked:
    """Letters in many wordings; gain and leakage of scripted answers; options turned all the way round."""
    from tessera.parts.benchmarks.mmstar import MMStar, gain, leakage, read_letter, turned

    said = {"A": "A", "b.": "B", "(C) dog": "C", "Option d": "D", "The answer is a": "A", "dog": "D", "I think B": "", "": ""}
    items = MMStar(MMStar.Config(per_axis=1, letters=True)).items()
    benchmark = MMStar(MMStar.Config(letters=True), items)
    truth = [[i.questions[0].answer] for i in items]
    half = [t if n % 2 else ["-"] for n, t in enumerate(truth)]
    full, some, none = (benchmark.score(items, s) for s in (truth, half, [["-"]] * len(items)))
    whole = [turned(i.questions[0], 4, True) == i.questions[0] for i in items]
    leaks = (leakage(some, none).value, leakage(none, some).value)
    return Checked(
        checks={
            "letters are read": all(read_letter(text) == letter for text, letter in said.items()),
            "an oracle scores 1": full["score"] == 1,
            "the gain is the difference": abs(gain(full, some).value - (1 - some["score"])) < 1e-12,
            "a model that is as good blind has no gain": gain(some, some).value == 0,
            "the leakage is the difference, never below 0": abs(leaks[0] - some["score"]) < 1e-12 and leaks[1] == 0,
            "options turned all the way round are as before": all(whole),
        },
        measured={"questions": len(items)},
    )


CLAIMS = [
    Exact(
        id="formulas",
        promise="Answers are read by the published rules, and gain and leakage equal their formulas.",
        paper="section 4.3, equations 1 and 2",
        run=formulas,
    ),
    Experiment(
        id="drops_what_needs_no_picture",
        promise="A judge without images drops a higher share of the questions that need no image than of those that need one.",
        paper="section 3.1, table 1",
        protocol=QuestionSelection(),
        treatment=Vary("judge", uses=("mmstar",)),
        control=Vary("guessing judge", uses=("mmstar",), judge="guess"),
        metric="planted dropped",
        primary=Effect(
            (("treatment", "planted dropped", 1.0), ("treatment", "visual dropped", -1.0)),
            "treatment drops more of the planted than of the visual questions",
        ),
        valid_if=(worse("control"),),
        secondary=(
            Effect(
                (("treatment", "blind accuracy", 1.0), ("treatment", "blind accuracy of what stays", -1.0)),
                "blind accuracy is lower on what stays",
            ),
        ),
        note="Visual questions whose answer is the usual one are dropped rightly, but count as visual here.",
    ),
    Experiment(
        id="gain_is_of_the_picture",
        promise="A model's score is higher with the images than without: its multimodal gain is above zero.",
        paper="section 4.3, table 6",
        protocol=Choices(),
        treatment=Vary("own image", uses=("mmstar",)),
        baseline=Vary("no image", uses=("mmstar",), image="none"),
        control=Vary("mismatched image", uses=("mmstar",), image="mismatched"),
        metric="score",
        primary=beats("baseline"),
        valid_if=(worse("control"),),
    ),
    Experiment(
        id="tells_leaks",
        promise="Leakage is higher for a model trained on the benchmark's questions than for a twin trained on as many other "
        "questions.",
        paper="section 4.3, equation 2, table 6",
        protocol=Leaked(),
        treatment=Vary("leaked", uses=("mmstar",), data="leaked"),
        control=Vary("clean twin", uses=("mmstar",), data="clean"),
        others={"leaked as text": Vary("leaked as text", uses=("mmstar",), data="leaked", image="none")},
        metric="leakage",
        primary=beats("control"),
        valid_if=(worse("control", than="leaked as text"),),
        note="Questions that leak without their pictures must show, or the training is too short to learn any by heart.",
    ),
]
