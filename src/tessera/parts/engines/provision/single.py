"""The 24 programs for one picture."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from tessera.data.scene_graph import RELATIONS, SceneGraph
from tessera.parts.engines.provision.draft import Context, Draft, Program, apart, certain, counts_near, either, pairs

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


# Depth


def _nearer(graph: SceneGraph, i: int, j: int, gap: float) -> tuple[int, int] | None:
    """(nearer, farther) of two things whose order can be told, else None."""
    a, b = graph.nodes[i].depth, graph.nodes[j].depth
    if a is None or b is None or a == b:
        return None
    if graph.ordered is None:
        if abs(a - b) < gap or not apart(graph.nodes[i].box, graph.nodes[j].box):
            return None
    elif (min(i, j), max(i, j)) not in graph.ordered:
        return None
    return (i, j) if a > b else (j, i)


def _depth(near: bool) -> Callable[[SceneGraph, Context], Iterator[Draft]]:
    def make(graph: SceneGraph, c: Context) -> Iterator[Draft]:
        for i, j in combinations(graph.unique(), 2):
            if (order := _nearer(graph, i, j, c.depth_gap)) is not None:
                names = [graph.nodes[k].label for k in order]
                answer, other = names if near else names[::-1]
                shown = c.rng.shuffled(names)
                query = (("op", "closer" if near else "farther"), ("labels", tuple(shown)))
                yield Draft({"candidates": either(shown)}, (answer,), (other,), query)

    return make


def _anchored(near: bool) -> Callable[[SceneGraph, Context], Iterator[Draft]]:
    """Of two things the one whose depth is nearer to a third's; needs depths that can be compared by amount."""

    def make(graph: SceneGraph, c: Context) -> Iterator[Draft]:
        if graph.ordered is not None:
            return
        for chosen in combinations(graph.unique(), 3):
            depths = [graph.nodes[i].depth for i in chosen]
            if None in depths or not all(apart(graph.nodes[i].box, graph.nodes[j].box) for i, j in combinations(chosen, 2)):
                continue
            at = {i: float(d or 0.0) for i, d in zip(chosen, depths, strict=True)}
            low, middle, high = sorted(chosen, key=at.__getitem__)
            first, second = at[middle] - at[low], at[high] - at[middle]
            if abs(first - second) < c.depth_gap:
                continue
            together, alone = ((middle, high), low) if first > second else ((low, middle), high)
            anchor, close = c.rng.shuffled(together)
            right, wrong = (close, alone) if near else (alone, close)
            names = [graph.nodes[i].label for i in c.rng.shuffled([right, wrong])]
            label = graph.nodes[anchor].label
            query = (("op", "closer_to" if near else "farther_from"), ("anchor", label), ("labels", tuple(names)))
            words = {"candidates": either(names), "anchor": label}
            yield Draft(words, (graph.nodes[right].label,), (graph.nodes[wrong].label,), query)

    return make


# Points


@dataclass(frozen=True, slots=True)
class Places:
    """Which thing each pixel shows, [H, W] (-1: none), and where that is so all around, so that a rounded point stays on it."""

    owner: np.ndarray
    inner: np.ndarray

    def pick(self, c: Context, thing: int) -> tuple[float, float] | None:
        """A point well inside a thing (or the background), in the unit square."""
        rows, columns = np.nonzero(self.inner & (self.owner == thing))
        if not len(rows):
            return None
        at = c.rng.below(len(rows))
        return self.middle(int(rows[at]), int(columns[at]))

    def middle(self, row: int, column: int) -> tuple[float, float]:
        """The middle of a pixel."""
        height, width = self.owner.shape
        return (column + 0.5) / width, (row + 0.5) / height


@functools.lru_cache(maxsize=1)
def places(graph: SceneGraph) -> Places | None:
    """The owners of pixels, None if the graph has no masks or may lack things."""
    if graph.masks is None or not graph.complete:
        return None
    masks = graph.masks()
    owner: np.ndarray = np.full(masks.shape[1:], -1)
    for i, mask in enumerate(masks):
        owner[mask] = i
    reach = max(1, round(max(owner.shape) / 56))  # a written point may be a hundredth of the side away
    inner = np.zeros(owner.shape, bool)
    h, w = int(owner.shape[0]), int(owner.shape[1])
    core = owner[reach:-reach, reach:-reach]
    same = np.ones(core.shape, bool)
    for dy in range(-reach, reach + 1):
        for dx in range(-reach, reach + 1):
            same &= owner[reach + dy : h - reach + dy, reach + dx : w - reach + dx] == core
    inner[reach:-reach, reach:-reach] = same
    return Places(owner, inner)


def _points(near: bool) -> Callable[[SceneGraph, Context], Iterator[Draft]]:
    """Which of two points is nearer: the points of two things, or of a thing and what is behind everything."""

    def make(graph: SceneGraph, c: Context) -> Iterator[Draft]:
        if any(n.depth is None for n in graph.nodes) or (found := places(graph)) is None:
            return
        choices = [(i, -1) for i in range(len(graph.nodes))]
        choices += [o for i, j in combinations(range(len(graph.nodes)), 2) if (o := _nearer(graph, i, j, c.depth_gap))]
        for first, second in c.rng.pick(choices, 4):
            a, b = found.pick(c, first), found.pick(c, second)
            if a is None or b is None:
                continue
            right, wrong = (c.point(*a), c.point(*b)) if near else (c.point(*b), c.point(*a))
            if right != wrong:
                shown = c.rng.shuffled([right, wrong])
                query = (("op", "closer_point" if near else "farther_point"), ("points", tuple(shown)))
                yield Draft({"candidates": either(shown)}, (right,), (wrong,), query)

    return make


def _same(same: bool) -> Callable[[SceneGraph, Context], Iterator[Draft]]:
    """Which of two points, equally far from a third, is (not) on the same thing."""

    def make(graph: SceneGraph, c: Context) -> Iterator[Draft]:
        if (found := places(graph)) is None:
            return
        for i in range(len(graph.nodes)):
            points = _three(found, i, c)
            if points is None:
                continue
            anchor, inside, outside = (c.point(*p) for p in points)
            if len({anchor, inside, outside}) == 3:
                right, wrong = (inside, outside) if same else (outside, inside)
                shown = c.rng.shuffled([right, wrong])
                query = (("op", "same" if same else "different"), ("anchor", anchor), ("points", tuple(shown)))
                yield Draft({"candidates": either(shown), "anchor": anchor}, (right,), (wrong,), query)

    return make


def _three(found: Places, thing: int, c: Context) -> Sequence[tuple[float, float]] | None:
    rows, columns = np.nonzero(found.inner & (found.owner == thing))
    height, width = found.owner.shape
    for _ in range(10 if len(rows) > 1 else 0):
        a, b = c.rng.pick(range(len(rows)), 2)
        y, x = int(rows[a]), int(columns[a])
        distance = float(np.hypot(y - rows[b], x - columns[b]))
        for _ in range(10):
            angle = c.rng.uniform(0.0, 2 * np.pi)
            v, u = round(y + distance * float(np.sin(angle))), round(x + distance * float(np.cos(angle)))
            if 0 <= v < height and 0 <= u < width and found.inner[v, u] and found.owner[v, u] != thing:
                return found.middle(y, x), found.middle(int(rows[b]), int(columns[b])), found.middle(v, u)
    return None


# Several hops


@dataclass(frozen=True, slots=True)
class Reference:
    """A thing told by an attribute, by its relation to a thing with a label, or both."""

    kind: str
    value: str
    relation: str
    other: str

    def text(self) -> str:
        """ "red object that is left of the dog"."""
        front = f"{self.value} object" if self.value else "object"
        return f"{front} that is {self.relation} the {self.other}" if self.relation else front

    def plain(self) -> tuple[str, str, str, str]:
        """For queries."""
        return self.kind, self.value, self.relation, self.other


def reference_of(graph: SceneGraph, reference: Reference) -> int | None:
    """The one thing that a reference points at; None if none or several do, or another might."""
    labels = graph.labels()
    at = labels.index(reference.other) if reference.relation else -1
    found = []
    for i, node in enumerate(graph.nodes):
        fits: bool | None = True
        if reference.kind:
            known = node.attributes.get(reference.kind)
            fits = None if known is None else known == reference.value
        if reference.relation and fits is not False:
            if (edge := (i, reference.relation, at)) in graph.doubtful:
                fits = None
            elif edge not in graph.edges:
                fits = False
        if fits is None:
            return None
        if fits:
            found.append(i)
    return found[0] if len(found) == 1 and graph.complete else None


@functools.lru_cache(maxsize=1)
def references(graph: SceneGraph) -> tuple[tuple[int, Reference], ...]:
    """All references that point at one thing, with the thing; no attribute alone of a thing that its label tells as well."""
    attributes = {("", "")} | {(k, v) for n in graph.nodes for k, v in n.attributes.items()}
    labels = [graph.nodes[i].label for i in graph.unique()]
    anchors = [("", "")] + [(r, label) for label in labels for r in RELATIONS]
    made = [Reference(k, v, r, o) for k, v in sorted(attributes) for r, o in anchors if v or r]
    return tuple((i, ref) for ref in made if (i := reference_of(graph, ref)) is not None)


def hop_object(graph: SceneGraph, c: Context) -> Iterator[Draft]:
    """Which thing an attribute and a relation point at."""
    names = sorted({n.label for n in graph.nodes})
    for i, ref in references(graph):
        node = graph.nodes[i]
        wrong = [n for n in names if n != node.label and n != ref.other]
        if node.sure and ref.relation:
            yield Draft(
                {"ref": ref.text()},
                (node.label,),
                tuple(c.rng.pick(wrong, c.options - 1)),
                (("op", "object_of"), ("ref", ref.plain())),
            )


def hop_relation(graph: SceneGraph, c: Context) -> Iterator[Draft]:
    """How the thing that one reference points at stands to another's."""
    known = references(graph)
    for (i, a), (j, b) in c.rng.pick([(p, q) for p in known for q in known if p[0] != q[0]], 40):
        labels = (graph.nodes[i].label, graph.nodes[j].label)
        if a.other in labels or b.other in labels or (found := certain(graph, i, j)) is None:
            continue
        words = {"a": a.text(), "b": b.text()}
        query = (("op", "relation_of"), ("a", a.plain()), ("b", b.plain()))
        yield Draft(words, found, tuple(r for r in RELATIONS if r not in found), query)


def hop_attribute(values: dict[str, tuple[str, ...]]) -> Callable[[SceneGraph, Context], Iterator[Draft]]:
    """One kind of attribute of the thing that a reference points at."""

    def make(graph: SceneGraph, c: Context) -> Iterator[Draft]:
        for i, ref in references(graph):
            for kind, value in graph.nodes[i].attributes.items():
                if kind != ref.kind:
                    wrong = c.rng.pick([v for v in values[kind] if v != value], c.options - 1)
                    query = (("op", "attribute_of"), ("ref", ref.plain()), ("kind", kind))
                    yield Draft({"ref": ref.text(), "kind": kind}, (value,), tuple(wrong), query)

    return make


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
        Program("closer_object", _depth(True), one("is in front")),
        Program("farther_object", _depth(False), one("is farther back")),
        Program("closer_to_anchor", _anchored(True), one("is nearer in depth to the {anchor}")),
        Program("farther_from_anchor", _anchored(False), one("is farther in depth from the {anchor}")),
        Program("closer_point", _points(True), one("is the point in front")),
        Program("farther_point", _points(False), one("is the point farther back")),
        Program("same_object", _same(True), one("is a point of the same object as {anchor}")),
        Program("different_object", _same(False), one("is a point of an object other than that of {anchor}")),
        Program("graph_object", hop_object, ("What is the {ref}?", "Which one is the {ref}?", "Name the {ref}.")),
        Program("graph_relation", hop_relation, stands),
        Program(
            "graph_attribute",
            hop_attribute(values),
            ("What is the {kind} of the {ref}?", "Which {kind} does the {ref} have?", "Name the {kind} of the {ref}."),
        ),
    )
