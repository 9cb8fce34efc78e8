"""ZoomEye: a best-first search of ever smaller views finds a small thing in few visits, and the model then answers about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Exact, Experiment, Vary, beats, worse
from tessera.lab.protocols.zooming import Zooming

if TYPE_CHECKING:
    from tessera.lab.lab import Lab
    from tessera.parts.agents.zoomeye.tree import Kind, RegionNode


def finds_quickly(lab: Lab) -> Checked:
    """200 random pictures and targets; confidence says whether a region holds the target's middle."""
    import random

    from tessera.parts.agents.zoomeye import ZoomEye
    from tessera.parts.agents.zoomeye.tree import depth_of, grow

    agent, worst, missed = ZoomEye(ZoomEye.Config(patience=99)), 0.0, 0
    for seed in range(200):
        rng = random.Random(seed)
        width, height = rng.randrange(1800, 3000), rng.randrange(1800, 3000)
        x, y = rng.randrange(width), rng.randrange(height)

        def oracle(node: RegionNode, kind: Kind, about: str, x: int = x, y: int = y, area: float = width * height / 256) -> float:
            left, top, wide, high = node.region
            inside = left <= x < left + wide and top <= y < top + high
            return 1.0 if inside and (kind != "answering" or wide * high <= area) else -1.0

        root = grow((width, height), 112)
        found = agent.search(root, "q", "thing", oracle)
        missed += len(found.nodes) != 1 or oracle(found.nodes[0], "answering", "q") < 1
        worst = max(worst, found.pops / (1 + 4 * depth_of(root)))
    return Checked(
        checks={"found in all 200": missed == 0, "within 1 + 4 x depth visits": worst <= 1},
        measured={"most visits as a share of 1 + 4 x depth": worst},
        shape="pictures of 1800 to 3000 pixels a side, whose trees, with leaves below 112, are five levels deep",
    )


def weighs_as_written(lab: Lab) -> Checked:
    """The weights of all depths of trees of up to 6 levels at several b."""
    from tessera.lab.exact import same
    from tessera.parts.agents.zoomeye.tree import weight

    worst = max(
        abs(weight(depth, deepest, bias) - ((1 - bias) / deepest**2 * depth**2 + bias))
        for bias in (0.0, 0.2, 0.6, 1.0)
        for deepest in range(1, 7)
        for depth in range(deepest + 1)
    )
    return same({"equal to a millionth": worst < 1e-6}, weight=worst)


def asks_little(lab: Lab) -> Checked:
    """50 searches of a tree of four levels, random confidences, too low to end early."""
    import random

    from tessera.parts.agents.zoomeye import ZoomEye
    from tessera.parts.agents.zoomeye.tree import grow

    agent, asked, visits, most = ZoomEye(ZoomEye.Config()), 0, 0, 0.0
    for seed in range(50):
        rng, count = random.Random(seed), 0

        def chance(node: RegionNode, kind: Kind, about: str, rng: random.Random = rng) -> float:
            nonlocal count
            count += 1
            return rng.uniform(-1, 0.5)

        found = agent.search(grow((896, 896), 112), "q", "thing", chance)
        asked, visits, most = asked + count, visits + found.pops, max(most, count / found.pops)
    return Checked(
        checks={"at most 9 confidences a visit": most <= 9},
        measured={"confidences a search": asked / 50, "visits a search": visits / 50, "most confidences a visit": most},
        shape="50 searches of a tree of 4 levels",
    )


def looking(name: str, look: str) -> Vary:
    """An arm that searches in this way."""
    return Vary(name, uses=("zoomeye",), look=look)


CLAIMS = [
    Exact(
        id="finds_quickly",
        promise="A search with an oracle finds a 256th of the image in at most 1 + 4 x depth visits.",
        paper="algorithm 1",
        run=finds_quickly,
    ),
    Exact(
        id="weighs_as_written",
        promise="A node's priority is b + (1 - b) d^2 / D^2 of existence and the rest of the latent confidence.",
        paper="equation 3",
        run=weighs_as_written,
    ),
    Exact(
        id="asks_little",
        promise="A search asks for at most nine confidences per visit: one of the region, two of each of its four parts.",
        paper="algorithm 1",
        run=asks_little,
    ),
    Experiment(
        id="zooms_in",
        promise="Accuracy on objects far smaller than the image is higher after a search than from one view of the whole image.",
        paper="tables 1 and 2",
        protocol=Zooming(),
        treatment=looking("search", "search"),
        baseline=looking("one glance", "glance"),
        control=looking("random search", "random"),
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        note="The model has learned to say whether a view holds anything, which larger models know from common sense.",
    ),
]
