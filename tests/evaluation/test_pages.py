"""Pages from templates: escaped, strict, and no page by hand beside them."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from markupsafe import Markup

from tessera.evaluation.pages import environment, piece, plain, style

SRC = Path(__file__).resolve().parents[2] / "src" / "tessera"
BY_HAND = ["lab/pages/plot.py"]
"""A drawing of numbers alone, thousands of times a catalogue."""
TAG = re.compile(r"<(?:/?(?:html|head|body|section|div|table|t[rdh]|figure|span|ul|li|pre|svg|h[1-6])\b)")


def test_what_a_page_is_told_is_escaped() -> None:
    drawn = piece("curves.html", about='"><b>', grid=[], stems=[], curves=[], steps=[], heads=[(1.0, "<i>&")])
    assert isinstance(drawn, Markup)
    assert "<b>" not in drawn and "&lt;i&gt;&amp;" in drawn


def test_a_name_that_a_template_does_not_get_raises() -> None:
    with pytest.raises(UndefinedError, match="about"):
        piece("curves.html", grid=[], stems=[], curves=[], steps=[], heads=[])


def test_other_packages_find_the_frame_and_have_their_own_style() -> None:
    own = environment("tessera.lab.pages")
    assert own.get_template("page.html").render is not None
    assert style("tessera.lab.pages", "compare.css").startswith(style())
    assert ".pareto" not in style() and ".pareto" in style("tessera.lab.pages", "compare.css")


def test_json_on_a_page_is_readable() -> None:
    assert plain({"é": Path("a/b")}) == '{\n  "é": "a/b"\n}'


def by_hand(source: str) -> list[int]:
    """Lines of formatted strings with tags in them."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            texts = [part.value for part in node.values if isinstance(part, ast.Constant) and isinstance(part.value, str)]
            if any(TAG.search(text) for text in texts):
                found.append(node.lineno)
    return found


def test_no_html_is_formatted_by_hand() -> None:
    found = {path.relative_to(SRC).as_posix(): by_hand(path.read_text(encoding="utf-8")) for path in SRC.rglob("*.py")}
    wrong = {name: lines for name, lines in found.items() if lines}
    assert list(wrong) == BY_HAND, f"pages come from templates, which escape: {wrong}"


def test_html_by_hand_would_be_found() -> None:
    assert by_hand('x = 1\ny = f"<td>{x}</td>"') == [2]
    assert by_hand('y = f"{x} < 3 and <image> or <class>"') == []
