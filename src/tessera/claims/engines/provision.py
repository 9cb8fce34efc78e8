"""ProVision: programs over scene graphs make questions whose answers are as right as the graph, and models train on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Exact, Experiment, Vary, beats, worse
from tessera.lab.protocols.generated import EngineData, Generated

if TYPE_CHECKING:
    from tessera.data.engine import Instruction
    from tessera.lab.lab import Lab

PLACES = ("relation", "head_relation", "leftmost_object", "rightmost_object", "topmost_object", "bottommost_object")
"""Programs that need labels, boxes and relations alone, which an expert sees."""
ABILITIES = (
    "count_object", "most_object", "least_object", "count_attribute", "relation", "relation_box", "head_relation",
    "leftmost_object", "rightmost_object", "topmost_object", "bottommost_object", "closer_object", "farther_object",
    "graph_relation",
)  # fmt: skip
"""Counting, relations and depth."""


def answers_are_right(lab: Lab) -> Checked:
    """All programs on 60 scenes and pairs, against answers worked out by going through all things; then with others' answers."""
    from tessera.data.scene_graph import of_samples
    from tessera.lab.protocols.generated import reanswered
    from tessera.parts.engines.provision import SEVERAL, SINGLE, ProVision
    from tessera.parts.engines.provision.checker import wrong_with
    from tessera.world import World

    def wrong(instructions: Sequence[Instruction]) -> int:
        return sum(bool(wrong_with(i)) for i in instructions)

    world = World(split="train", kinds={"scene": 0.5, "pair": 0.5}, things=(3, 5), width=64, height=64)
    samples = [world[i] for i in range(60)]
    made = list(ProVision(ProVision.Config(multi=10)).instructions(of_samples(samples)))
    deep = ProVision.Config(single=("closer_to_anchor", "farther_from_anchor"), several=("none",))
    made += list(ProVision(deep).instructions(of_samples(samples, evident=False)))
    programs, refused = {i.question.type for i in made}, wrong(reanswered(made))
    return Checked(
        checks={
            "no answer is wrong": wrong(made) == 0,
            "all 24 + 14 programs ask": programs == {*SINGLE, *SEVERAL} and len(programs) == 38,
            "the checker notices answers of other questions": refused > len(made) / 4,
        },
        measured={"questions": len(made), "wrong among shuffled answers": refused},
        shape="60 samples of 3 to 5 things, 64 pixels a side",
    )


def graph(name: str, graph: str) -> Vary:
    """An arm whose questions are made from these graphs."""
    return Vary(name, uses=("provision",), graph=graph)


def data(name: str, data: str) -> Vary:
    """An arm that is trained with these data."""
    return Vary(name, uses=("provision",), data=data)


CLAIMS = [
    Exact(
        id="answers_are_right",
        promise="Every program's answer is right, and no other answer is.",
        paper="section 3, table 1",
        run=answers_are_right,
    ),
    Experiment(
        id="expert_graphs",
        promise="Answers from the scene graphs of a vision expert are right more often than each program's most frequent answer.",
        paper="section 3.2",
        protocol=Generated(programs=PLACES),
        metric="right",
        treatment=graph("expert's graphs", "expert"),
        baseline=Vary("most frequent answers", uses=("provision",), graph="expert", answers="frequent"),
        control=graph("shuffled labels", "shuffled labels"),
        others={"true graphs": graph("true graphs", "truth")},
        primary=beats("baseline"),
        valid_if=(worse("control"), worse("control", than="true graphs")),
        secondary=(worse("treatment", than="true graphs"),),
        note="A thing that the expert splits in two, or takes for another, makes its relations wrong.",
        amended=("At first only shuffled labels had to be beaten, as any expert of some use does; they are the control now.",),
    ),
    Experiment(
        id="teaches",
        promise="At equal budget, accuracy on counts, relations and depth is higher after training with the engine's data than "
        "with base data alone.",
        paper="section 4.2, tables 2 to 4",
        protocol=EngineData(programs=ABILITIES),
        treatment=data("engine's data", "engine"),
        baseline=data("base data", "base"),
        control=data("shuffled answers", "shuffled"),
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(worse("treatment", than="baseline", metric="base accuracy"),),
        note="Asked in phrasings that were not trained on. Questions about several pictures are neither "
        "trained nor measured here.",
    ),
]
