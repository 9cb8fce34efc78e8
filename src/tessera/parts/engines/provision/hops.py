"""The programs of several hops: things told by an attribute, by a relation, or by both."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tessera.data.scene_graph import RELATIONS, SceneGraph
from tessera.parts.engines.provision.draft import Context, Draft, certain


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
