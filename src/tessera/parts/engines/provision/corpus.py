"""Many scene graphs, by what is in them."""

from __future__ import annotations

from collections.abc import Sequence

from tessera.data.scene_graph import SceneGraph
from tessera.parts.engines.provision.draft import certain


class Corpus:
    """Only graphs are used that are complete and whose labels are all sure."""

    def __init__(self, graphs: Sequence[SceneGraph]) -> None:
        self.graphs = graphs
        self.usable = [i for i, g in enumerate(graphs) if g.complete and all(n.sure for n in g.nodes)]
        self.by_label: dict[str, list[int]] = {}
        self.by_edge: dict[tuple[str, str, str], list[int]] = {}
        self.by_pair: dict[tuple[str, str], list[int]] = {}
        for i in self.usable:
            for label in dict.fromkeys(graphs[i].labels()):
                self.by_label.setdefault(label, []).append(i)
            unique = graphs[i].unique()
            for a in unique:
                for b in unique:
                    if a != b and (found := certain(graphs[i], a, b)) is not None:
                        ends = (graphs[i].nodes[a].label, graphs[i].nodes[b].label)
                        self.by_pair.setdefault(ends, []).append(i)
                        for name in found:
                            self.by_edge.setdefault((ends[0], name, ends[1]), []).append(i)
        self._often: dict[tuple[str, int], list[object]] = {}

    def often(self, what: str, least: int) -> list[object]:
        """Labels ("by_label"), pairs or edges that at least so many pictures show."""
        key = (what, least)
        if key not in self._often:
            self._often[key] = [k for k, members in getattr(self, what).items() if len(members) >= least]
        return self._often[key]

    def by_count(self, label: str) -> dict[int, list[int]]:
        """The pictures that show a label, by how often."""
        found: dict[int, list[int]] = {}
        for i in self.by_label[label]:
            found.setdefault(self.graphs[i].labels().count(label), []).append(i)
        return found

    def varied(self, least: int) -> list[object]:
        """Labels that occur in at least so many different numbers."""
        key = ("varied", least)
        if key not in self._often:
            self._often[key] = [label for label in self.often("by_label", least) if len(self.by_count(str(label))) >= least]
        return self._often[key]

    def attribute(self, picture: int, label: str, kind: str) -> list[str] | None:
        """The values of a kind of attribute that things of a label have in a picture; None if one is not known."""
        values = [n.attributes.get(kind) for n in self.graphs[picture].nodes if n.label == label]
        return None if None in values else [v for v in values if v is not None]

    def kinds(self, pictures: Sequence[int], label: str) -> list[str]:
        """Kinds of attributes that are known of all things of a label in the pictures."""
        own = [n for p in pictures for n in self.graphs[p].nodes if n.label == label]
        found = sorted({k for n in own for k in n.attributes})
        return [k for k in found if all(k in n.attributes for n in own)]
