"""Imports point downwards: no circle of rooms, and no circle of files within a room.

A room is what stands directly under `tessera`: a package, or a single module such as `config`. Every import counts: at the head
of a file, inside a function, for types alone.
"""

from __future__ import annotations

import ast

import pytest
from scripts import write_layers as layers

ROOMS_TO_UNTIE = [["hosts", "models"]]
"""Circles of rooms that still stand: hosts make tiny composed models, whose parts are told from parts for hosts."""
FILES_TO_UNTIE = ["lab"]
"""Rooms whose files still form a circle."""


def test_rooms_form_no_circle_but_those_to_untie() -> None:
    found = layers.circles(layers.rooms())
    new = [circle for circle in found if circle not in ROOMS_TO_UNTIE]
    assert not new, f"what two rooms share moves down into a third: {[layers.reasons(circle) for circle in new]}"
    assert [circle for circle in ROOMS_TO_UNTIE if circle not in found] == [], "untied: take it off the list"


def test_files_of_a_room_form_no_circle_but_in_those_to_untie() -> None:
    found: dict[str, list[list[str]]] = {}
    for circle in layers.circles(layers.files()):
        found.setdefault(layers.room(circle[0]), []).append(circle)
    new = {name: circles for name, circles in found.items() if name not in FILES_TO_UNTIE}
    assert not new, new
    assert [name for name in FILES_TO_UNTIE if name not in found] == [], "untied: take it off the list"


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
