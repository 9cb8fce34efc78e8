"""Scene graphs of the world and of an expert."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tessera.data.scene_graph import Node, SceneGraph, of_expert, of_samples, of_world, relations_of
from tessera.errors import UserError
from tessera.world import World


def test_relations_are_those_of_the_world_both_ways() -> None:
    world = World(split="train", kinds={"scene": 1.0}, things=(3, 6), width=64, height=64)
    opposite = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
    for index in range(6):
        sample = world[index]
        edges, doubtful = relations_of([t.box for t in sample.truth()])
        assert set(sample.relations()) == {e for e in edges if e[1] in ("left of", "above")}
        assert edges == {(j, opposite[r], i) for i, r, j in edges} and not edges & doubtful
        assert doubtful == {(j, opposite[r], i) for i, r, j in doubtful}


def test_the_true_graph() -> None:
    world = World(split="train", kinds={"scene": 1.0}, things=(2, 8), width=64, height=64)
    for picture in of_samples(world[i] for i in range(10)):
        sample = picture.source[0]  # type: ignore[index]
        truth, nodes = sample.truth(), picture.graph.nodes
        assert [(n.label, n.box) for n in nodes] == [(t.name, t.box) for t in truth]
        assert all(
            n.attributes.get("colour") == t.tint and n.attributes["style"] == t.style for n, t in zip(nodes, truth, strict=True)
        )
        assert picture.graph.masks is not None and picture.graph.masks().shape == (len(nodes), 64, 64)
        assert picture.split == "train" and np.array_equal(picture.picture(), sample.images()[0])
        assert picture.graph.ordered is not None and all(i < j for i, j in picture.graph.ordered)
        assert of_world(sample, evident=False).graph.ordered is None


def test_names_of_pictures_differ() -> None:
    world = World(split="train", kinds={"pair": 1.0}, width=64, height=64)
    names = [p.name for p in of_samples(world[i] for i in range(5))]
    assert len(names) == len(set(names)) == 10


def test_only_lone_and_sure_things_are_unique() -> None:
    box = (0.0, 0.0, 0.1, 0.1)
    graph = SceneGraph(
        nodes=(Node(label="a", box=box), Node(label="b", box=box), Node(label="b", box=box), Node(label="c", box=box, sure=False))
    )
    assert graph.unique() == [0] and graph != SceneGraph(nodes=graph.nodes)


class Expert(torch.nn.Module):
    """Says for 4 x 4 patches: two dogs, one of them a single patch, a cat of two patches, and text."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.scale = torch.nn.Identity(), torch.nn.Parameter(torch.tensor(9.0))
        self.grid, self.encoder = (4, 4), SimpleNamespace(image_size=32)
        self.config = SimpleNamespace(id2label={0: "dog", 1: "cat", 2: "background", 3: "text"})

    def forward(self, pixels: torch.Tensor) -> Any:
        assert pixels.shape == (1, 3, 32, 32)
        seen = torch.tensor([[0, 0, 2, 2], [0, 2, 2, 1], [2, 2, 2, 1], [0, 3, 3, 3]])
        return SimpleNamespace(logits=torch.nn.functional.one_hot(seen, 4).reshape(1, 16, 4) * self.scale)


def test_an_experts_graph() -> None:
    from PIL import Image

    picture = Image.new("RGB", (64, 64))
    graph = of_expert(Expert(), picture)
    assert {(n.label, n.box) for n in graph.nodes} == {("dog", (0.0, 0.0, 0.5, 0.5)), ("cat", (0.75, 0.25, 1.0, 0.75))}
    at = graph.labels()
    assert (at.index("dog"), "left of", at.index("cat")) in graph.edges and not graph.complete
    assert len(of_expert(Expert(), picture, least=1).nodes) == 3
    unsure = Expert()
    unsure.scale.data.fill_(0.1)
    assert not of_expert(unsure, picture).nodes
    with pytest.raises(UserError, match="expert"):
        of_expert(torch.nn.Linear(2, 2), picture)
