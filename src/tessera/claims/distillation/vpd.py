"""VPD: a model fine-tuned on traces of programs with right answers needs neither programs nor tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Checked, Exact, Experiment, Use, Vary, beats, worse
from tessera.lab.protocols.further_training import SCENES, FurtherTraining
from tessera.lab.protocols.programs import STEPWISE, Programs

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def means_what_it_says(lab: Lab) -> Checked:
    """Questions that programs are known for, at temperature 0 and without noise; and what is no program is refused."""
    from tessera.parts.distillation.vpd import attempt
    from tessera.parts.distillation.vpd.programs import Grammar, run, understood
    from tessera.parts.distillation.vpd.tools import Failed, Tools
    from tessera.world import World
    from tessera.world.rng import Rng

    world = World(split="test", kinds={"scene": 1.0}, things=(1, 5))
    samples = [world[index] for index in range(60)]
    asked = [(sample, q) for sample in samples for q in sample.questions(STEPWISE) if understood(q.text)]
    right = [
        attempt(s, q, Rng("exact", i), proposer=Grammar(), k=1, temperature=0.0, noise=0.0).program is not None
        for i, (s, q) in enumerate(asked)
    ]
    refused = []
    for text in (
        "import os",
        "answer = open('x')",
        "answer = count(find('dog'))",
        "answer = find.__class__('dog')",
        "while True: pass",
    ):
        try:
            run(text, Tools(samples[0], 0.0, Rng("none")))
            refused.append(False)
        except Failed:
            refused.append(True)
    return Checked(
        checks={"every answer is right": len(right) > 100 and all(right), "what is no program is refused": all(refused)},
        measured={"right": sum(right) / len(right)},
        shape=f"{len(asked)} questions",
    )


def _arm(name: str, **options: Any) -> Vary:
    return Vary(name, objective={"kind": "vpd", "questions": 2, **options})


CLAIMS = [
    Exact(
        id="means_what_it_says",
        promise="With exact tools the program that expresses a question gives the right answer, for every question.",
        run=means_what_it_says,
    ),
    Experiment(
        id="several_find_the_right_one",
        promise="The program selected from five by a check of their answers has the right rationale more often than one "
        "unchecked program.",
        paper="section 3.1",
        protocol=Programs(),
        treatment=Use("vpd", k=5),
        baseline=Use("vpd", k=1, filtered=False),
        control=Use("vpd", k=5, temperature=1e6),
        others={"one, checked": Use("vpd", k=1)},
        metric="agrees",
        primary=beats("baseline"),
        valid_if=(worse("control", metric="explained"),),
        secondary=(worse("control"), beats("one, checked"), beats("one, checked", metric="found")),
        note="Of the questions for which a program is kept. Where answers are few, a wrong program is right by luck, the sooner "
        "the more are tried; its rationale is not. The control chooses at random and has to explain fewer of all questions. "
        "That five find an answer more often than one is arithmetic; by how much is reported.",
        amended=(
            "A first look at 60 scenes asked of the control that its kept programs have right rationales less often. The check "
            "lets few of them through, on easy questions, and these are mostly right; the share of all questions counts instead.",
        ),
    ),
    Experiment(
        id="distilled_model_reasons",
        promise="On questions of one or two steps, accuracy is higher after training on answers and rationales than after the "
        "same training on answers alone.",
        paper="table 4",
        protocol=FurtherTraining(
            steps=20,
            tests={"stepwise": {"types": STEPWISE, "world": SCENES, "pictures": 150, "most": 5}},
        ),
        treatment=_arm("rationales"),
        baseline=_arm("answers alone", rationales=False),
        control=_arm("rationales of random programs", filtered=False, programs=1, temperature=1e6, noise=0.5),
        others={"unchecked": _arm("unchecked", filtered=False), "before": Vary("before", steps=0)},
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(beats("unchecked"), beats("before")),
        note="Answers are words that a small model reads off in one step; a rationale helps where the step is too long for it.",
    ),
]
