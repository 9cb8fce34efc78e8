"""Imports point downwards: no circle of rooms, and no circle of files within a room.

A room is what stands directly under `tessera`: a package, or a single module such as `config`. Every import counts: at the head
of a file, inside a function, for types alone.
"""

from __future__ import annotations

import ast

import pytest
from scripts import write_layers as layers

LAYERED = [name for name in sorted(layers.rooms()) if name != layers.FACADE and layers.named_layers(name)]
"""Rooms whose docstring names their layers."""


def test_rooms_form_no_circle() -> None:
    found = layers.circles(layers.rooms())
    assert not found, f"what two rooms share moves down into a third: {[layers.reasons(circle) for circle in found]}"


@pytest.mark.parametrize("name", sorted(layers.rooms()))
def test_files_of_a_room_form_no_circle(name: str) -> None:
    graph = layers.inside(name)
    found = layers.circles(graph)
    assert not found, [f"{len(circle)} files in one circle, such as {layers.walk(graph, circle)}" for circle in found]


def test_hosts_and_lab_name_their_layers() -> None:
    assert {"hosts", "lab"} <= set(LAYERED)
    assert list(layers.named_layers("lab"))[:2] == ["values", "judge"]


@pytest.mark.parametrize("name", LAYERED)
def test_files_import_their_own_layer_and_those_below(name: str) -> None:
    listed = layers.named_layers(name)
    order, graph = list(listed), layers.inside(name)
    files = graph.keys() - {f"tessera.{name}"}
    layer = {file: layers.layer_of(file, listed) for file in files}
    assert {file for file in files if layer[file] is None} == set(), "in no layer"
    known = {".".join(module.split(".")[2:]) for module in files}
    assert [member for members in listed.values() for member in members if member not in known] == [], "no such module"
    upwards = [
        f"{file} ({layer[file]}) -> {other} ({layer[other]})"
        for file in sorted(files)
        for other in sorted(graph[file] & files)
        if order.index(str(layer[other])) > order.index(str(layer[file]))
    ]
    assert upwards == []


@pytest.mark.parametrize(
    ("graph", "circles"),
    [
        ({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set()}, [["b", "c"]]),
        ({"a": {"b", "c"}, "b": {"c"}, "c": set()}, []),
        ({"a": {"b"}, "b": {"a"}, "c": {"d"}, "d": {"c", "a"}}, [["a", "b"], ["c", "d"]]),
        ({"a": {"a"}}, []),
    ],
)
def test_circles_are_found(graph: dict[str, set[str]], circles: list[list[str]]) -> None:
    assert layers.circles(graph) == circles


def test_a_circle_is_shown_by_its_shortest_way() -> None:
    graph = {"a": {"b", "x"}, "b": {"c"}, "c": {"a", "d"}, "d": {"a"}, "x": set()}
    assert layers.walk(graph, ["a", "b", "c", "d"]) == "a -> b -> c -> a"


def test_a_module_is_of_the_layer_that_names_it_most_closely() -> None:
    listed = {"values": ["protocols.base", "arms"], "protocols": ["protocols"]}
    found = {m: layers.layer_of(f"tessera.lab.{m}", listed) for m in ("protocols.base", "protocols.views", "protocols", "armsx")}
    assert found == {"protocols.base": "values", "protocols.views": "protocols", "protocols": "protocols", "armsx": None}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from tessera.nn import tokens", {"tessera.nn.tokens"}),
        ("from tessera.nn.tokens import VisualTokens", {"tessera.nn.tokens"}),
        ("import tessera.nn.tokens as tokens, torch", {"tessera.nn.tokens"}),
        ("def later():\n    from tessera import registry", {"tessera.registry"}),
        ("if TYPE_CHECKING:\n    from tessera.nn.layout import Block", {"tessera.nn.layout"}),
        ("from tessera import __version__", {"tessera"}),
        ("from ..nn import tokens", {"tessera.nn.tokens"}),
        ("import torch", set()),
    ],
)
def test_every_import_counts(source: str, found: set[str]) -> None:
    assert layers.imported(ast.walk(ast.parse(source)), package="tessera.models") == found


def test_levels_stand_above_all_that_they_import() -> None:
    graph = {"top": {"left", "right", "base"}, "left": {"base"}, "right": {"left", "base"}, "base": set(), "x": {"y"}, "y": {"x"}}
    assert layers.levels(graph) == [[["base"], ["x", "y"]], [["left"]], [["right"]], [["top"]]]


def test_the_picture_of_the_layers_is_up_to_date() -> None:
    assert layers.written() == layers.PAGE.read_text(encoding="utf-8"), "run scripts/write_layers.py"
    assert layers.picture() == layers.PICTURE.read_text(encoding="utf-8"), "run scripts/write_layers.py"


def test_a_new_import_changes_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = layers.rooms()
    monkeypatch.setattr(layers, "rooms", lambda: {**graph, "world": graph["world"] | {"cli"}})
    assert layers.written() != layers.PAGE.read_text(encoding="utf-8")
    assert layers.picture() != layers.PICTURE.read_text(encoding="utf-8")
