"""The 24 programs for one picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import combinations

from tessera.data.scene_graph import RELATIONS, SceneGraph
from tessera.parts.engines.provision.depth import anchored, depth, points, same
from tessera.parts.engines.provision.draft import Context, Draft, Program, apart, certain, counts_near, either, pairs
from tessera.parts.engines.provision.hops import hop_attribute, hop_object, hop_relation

SIDES = {"left": (0, min), "right": (2, max), "top": (1, min), "bottom": (3, max)}
"""Outermost side -> the edge of a box that is compared, and how."""


def _counted(graph: SceneGraph) -> Counter[str]:
    """How often each label occurs; empty if the graph may lack something, or a thing could be meant by another's label."""
    return Counter(graph.labels()) if graph.complete and all(n.sure for n in graph.nodes) else Counter()


# Objects


def count_object(graph: SceneGraph, c: Context) -> Iterator[Draft]:
    """How often a label occurs."""
    for label, count in _counted(graph).items():
        yield Draft({"name": label}, (str(count),), counts_near(count), (("op", "count"), ("label", label)))


def _frequent(best: Callable[..., int], op: str) -> Callable[[SceneGraph, Context], Iterator[Draft]]:
    def make(graph: SceneGraph, c: Context) -> Iterator[Draft]:
        counts = _counted(graph)
        if not counts:
            return
        extreme = best(counts.values())
        winners = [label for label, n in counts.items() if n == extreme]
        rest = [label for label, n in counts.items() if n != extreme]
        if len(winners) == 1 and rest:
            wrong = c.rng.pick(rest, c.options - 1)
            names = c.rng.shuffled([winners[0], *wrong])
            yield Draft({"candidates": either(names)}, (winners[0],), tuple(wrong), (("op", op), ("labels", tuple(names))))

    return make


def _outermost(side: str) -> Callable[[SceneGraph, Context], Iterator[Draft]]:
    edge, best = SIDES[side]
    axis = edge % 2

    def make(graph: SceneGraph, c: Context) -> Iterator[Draft]:
        boxes = [n.box for n in graph.nodes]
        for chosen in combinations(graph.unique(), 3):
            if all(apart(boxes[i], boxes[j], (axis,)) for i, j in combinations(chosen, 2)):
                winner = best(chosen, key=lambda i: boxes[i][edge])
                names = [graph.nodes[i].label for i in c.rng.shuffled(chosen)]
                answer = graph.nodes[winner].label
                yield Draft(
                    {"candidates": either(names)},
                    (answer,),
                    tuple(n for n in names if n != answer),
                    (("op", "outermost"), ("side", side), ("labels", tuple(names))),
                )

    return make


# Attributes


def _kinds(graph: SceneGraph) -> list[str]:
    return sorted({kind for node in graph.nodes for kind in node.attributes})


def count_attribute(graph: SceneGraph, c: Context) -> Iterator[Draft]:
    """How often a label occurs with an attribute, where that kind of attribute is known of all that bear the label."""
    for label in _counted(graph):
        own = [n for n in graph.nodes if n.label == label]
        for kind in _kinds(graph):
            if all(kind in n.attributes for n in own):
                for value, count in Counter(n.attributes[kind] for n in own).items():
                    query = (("op", "count_attribute"), ("label", label), ("kind", kind), ("value", value))
                    yield Draft({"name": f"{value} {label}"}, (str(count),), counts_near(count), query)


def _boxed(graph: SceneGraph) -> list[int]:
    """Things that label and box point at: no other one of the label lies nearly there."""
    found = []
    for i, node in enumerate(graph.nodes):
        twins = [n.box for j, n in enumerate(graph.nodes) if j != i and n.label == node.label]
        if node.sure and all(apart(node.box, box) for box in twins):
            found.append(i)
    return found


def attribute_box(values: dict[str, tuple[str, ...]]) -> Callable[[SceneGraph, Context], Iterator[Draft]]:
    """All attributes of the thing in a box, where all kinds are known of it."""

    def make(graph: SceneGraph, c: Context) -> Iterator[Draft]:
        for i in _boxed(graph):
            node = graph.nodes[i]
            if not values or set(node.attributes) != set(values):
                continue
            answers = tuple(node.attributes[k] for k in sorted(node.attributes))
            wrong = [v for vs in values.values() for v in vs if v not in answers]
            query = (("op", "attributes"), ("label", node.label), ("box", node.box))
            yield Draft({"name": node.label, "box": c.box(node.box)}, answers, tuple(c.rng.pick(wrong, c.options - 1)), query)

    return make


def typed_attribute_box(values: dict[str, tuple[str, ...]]) -> Callable[[SceneGraph, Context], Iterator[Draft]]:
    """One kind of attribute of the thing in a box."""

    def make(graph: SceneGraph, c: Context) -> Iterator[Draft]:
        for i in _boxed(graph):
            node = graph.nodes[i]
            for kind, value in node.attributes.items():
                wrong = c.rng.pick([v for v in values[kind] if v != value], c.options - 1)
                query = (("op", "attribute"), ("label", node.label), ("box", node.box), ("kind", kind))
                yield Draft({"name": node.label, "box": c.box(node.box), "kind": kind}, (value,), tuple(wrong), query)

    return make


# Relations


def relation(graph: SceneGraph, c: Context) -> Iterator[Draft]:
    """How one thing stands to another, by their labels."""
    for i, j in pairs(graph.unique()):
        a, b = graph.nodes[i].label, graph.nodes[j].label
        if (found := certain(graph, i, j)) is not None:
            query = (("op", "relation"), ("a", a), ("b", b))
            yield Draft({"a": a, "b": b}, found, tuple(r for r in RELATIONS if r not in found), query)


def relation_box(graph: SceneGraph, c: Context) -> Iterator[Draft]:
    """How the thing in one box stands to the thing in another."""
    chosen = [i for i, node in enumerate(graph.nodes) if all(apart(node.box, n.box) for n in graph.nodes if n is not node)]
    for i, j in pairs(chosen):
        if (found := certain(graph, i, j)) is not None:
            a, b = graph.nodes[i].box, graph.nodes[j].box
            words = {"a": c.box(a), "b": c.box(b)}
            yield Draft(words, found, tuple(r for r in RELATIONS if r not in found), (("op", "relation_box"), ("a", a), ("b", b)))


def head(graph: SceneGraph, c: Context) -> Iterator[Draft]:
    """Which of some things stands in a relation to another."""
    unique = graph.unique()
    for j in unique:
        for name in RELATIONS:
            right = [i for i in unique if (i, name, j) in graph.edges]
            rest = [i for i in unique if i != j and i not in right and (i, name, j) not in graph.doubtful]
            for i in right if rest else ():
                wrong = c.rng.pick(rest, c.options - 1)
                names = [graph.nodes[k].label for k in c.rng.shuffled([i, *wrong])]
                answer, other = graph.nodes[i].label, graph.nodes[j].label
                query = (("op", "head"), ("relation", name), ("b", other), ("labels", tuple(names)))
                words = {"candidates": either(names), "relation": name, "b": other}
                yield Draft(words, (answer,), tuple(n for n in names if n != answer), query)


def programs(values: dict[str, tuple[str, ...]]) -> tuple[Program, ...]:
    """All 24; `values`: the attributes that occur, by kind, for wrong options."""
    count = (
        "How many times does the {name} appear?",
        "How often does the {name} appear in the picture?",
        "How many of {name} are there?",
    )

    def one(text: str) -> tuple[str, ...]:
        return (f"Which one {text}, {{candidates}}?", f"Of {{candidates}}, which one {text}?", f"Which {text}: {{candidates}}?")

    stands = (
        "Where is the {a}, as seen from the {b}?",
        "What is the place of the {a} to the {b}?",
        "How is the {a} placed to the {b}?",
    )
    return (
        Program("count_object", count_object, count),
        Program("most_object", _frequent(max, "most"), one("appears most often")),
        Program("least_object", _frequent(min, "least"), one("appears least often")),
        Program("leftmost_object", _outermost("left"), one("is farthest to the left")),
        Program("rightmost_object", _outermost("right"), one("is farthest to the right")),
        Program("topmost_object", _outermost("top"), one("is highest up")),
        Program("bottommost_object", _outermost("bottom"), one("is lowest down")),
        Program("count_attribute", count_attribute, count),
        Program(
            "attribute_box",
            attribute_box(values),
            (
                "How does the {name} in the box {box} look?",
                "What is the look of the {name} in the box {box}?",
                "Look at the {name} in {box}: how is it?",
            ),
        ),
        Program(
            "typed_attribute_box",
            typed_attribute_box(values),
            (
                "What is the {kind} of the {name} in the box {box}?",
                "Which {kind} does the {name} in the box {box} have?",
                "In {box}, what {kind} is the {name}?",
            ),
        ),
        Program("relation", relation, stands),
        Program("relation_box", relation_box, tuple(s.replace("the {", "the object in the box {") for s in stands)),
        Program("head_relation", head, one("is {relation} the {b}")),
        Program("closer_object", depth(True), one("is in front")),
        Program("farther_object", depth(False), one("is farther back")),
        Program("closer_to_anchor", anchored(True), one("is nearer in depth to the {anchor}")),
        Program("farther_from_anchor", anchored(False), one("is farther in depth from the {anchor}")),
        Program("closer_point", points(True), one("is the point in front")),
        Program("farther_point", points(False), one("is the point farther back")),
        Program("same_object", same(True), one("is a point of the same object as {anchor}")),
        Program("different_object", same(False), one("is a point of an object other than that of {anchor}")),
        Program("graph_object", hop_object, ("What is the {ref}?", "Which one is the {ref}?", "Name the {ref}.")),
        Program("graph_relation", hop_relation, stands),
        Program(
            "graph_attribute",
            hop_attribute(values),
            ("What is the {kind} of the {ref}?", "Which {kind} does the {ref} have?", "Name the {kind} of the {ref}."),
        ),
    )
