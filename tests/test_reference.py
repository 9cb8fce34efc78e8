"""Documents and the API reference: links lead to files and names that exist, and what the reference names has a docstring."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from scripts import api_reference as reference

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [*sorted(reference.ADDED), *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))]


# Links


def broken(text: str, source: str) -> list[str]:
    """Links of a document whose file is missing, or whose file does not define the name that the link's text is. source: the
    document's path in the repository."""
    found = []
    for words, target in reference.links(text):
        path = Path(os.path.normpath(ROOT / Path(source).parent / target.partition("#")[0]))
        name = reference.symbol(words)
        if target.startswith("#"):
            continue
        if not path.exists():
            found.append(f"{source}: {target} is not there")
        elif path.suffix == ".py" and name and name not in reference.read("", path).members:
            found.append(f"{source}: {target} defines no public {name}")
    return found


@pytest.mark.parametrize("source", DOCUMENTS)
def test_links_lead_to_files_and_names(source: str) -> None:
    assert broken((ROOT / source).read_text(encoding="utf-8"), source) == []


def test_the_ways_are_made_of_links() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    linked = {target for _, target in reference.links(text)}
    for room in ("data", "models", "nn", "hosts", "evaluation", "lab", "claims"):
        assert any(f"/tessera/{room}/" in target for target in linked), room
    assert "images/layers.svg" in linked


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("[`open_image`](../src/tessera/data/images.py)", ""),
        ("[`Session.ask()`](../src/tessera/generation/session.py) and [SILENT](../src/tessera/generation/session.py)", ""),
        ("[a site](https://example.org/none.py) and `[M](none.py)`", ""),
        ("```\n[`none`](../none.py)\n```", ""),
        ("[`Session.answer`](../src/tessera/generation/session.py)", "defines no public Session.answer"),
        ("[`open_picture`](../src/tessera/data/images.py)", "defines no public open_picture"),
        ("[the code](../src/tessera/data/image.py)", "is not there"),
        ("![a picture](images/none.png)", "is not there"),
    ],
)
def test_a_broken_link_is_noticed(text: str, wrong: str) -> None:
    found = broken(text, "docs/made_up.md")
    assert [wrong] == [line.rpartition(wrong)[1] for line in found] if wrong else found == []


# The reference


def test_everything_in_the_reference_has_a_docstring() -> None:
    assert reference.undocumented() == []


def test_a_missing_docstring_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "made_up.py"
    file.write_text(
        "def plain(): ...\n\ndef _own(): ...\n\nclass Told:\n    '''A class.'''\n\n    def ask(self): ...\n\n"
        "class Untold: ...\n\nSIZE = 3\n",
        encoding="utf-8",
    )
    made_up = reference.read("made_up", file)
    monkeypatch.setattr(reference, "modules", lambda: {"made_up": made_up})
    assert list(made_up.members) == ["plain", "Told", "Told.ask", "Untold", "SIZE"]
    assert reference.undocumented() == ["made_up", "made_up.plain", "made_up.Untold"]


def test_every_public_module_has_one_page_and_one_place_in_the_navigation() -> None:
    pages = [module.page for module in reference.modules().values()]
    assert len(set(pages)) == len(pages) > 300
    assert sorted(places(reference.nav())) == sorted(pages)
    assert not [name for name in reference.modules() if "._" in name]


def places(tree: reference.Nav) -> list[str]:
    """The pages of a navigation."""
    found = []
    for entry in tree:
        for value in entry.values():
            found += [value] if isinstance(value, str) else places(value)
    return found


def test_the_first_sentence_stands_in_the_list_of_a_package() -> None:
    page = reference.page(reference.modules()["tessera.generation"])
    assert page.startswith("::: tessera.generation\n")
    assert "[`session`][tessera.generation.session]\n:   A conversation with one model about images" in page


@pytest.mark.parametrize(
    ("doc", "markdown"),
    [
        (
            "Shapes.\n\ntext     what was said,\n         in words\nfinished  whether it ended",
            "Shapes.\n\n`text`\n:   what was said,\n    in words\n\n`finished`\n:   whether it ended",
        ),
        ("Some words:\nsize  in pixels", "Some words:\n\n`size`\n:   in pixels"),
        ("As in\n\n    a = b < c\n    d  e", "As in\n\n    a = b < c\n    d  e"),
        ("- one\n  and more\n- two", "- one\n    and more\n- two"),
        ("the factor is 1 + (a\n- 1) x b", "the factor is 1 + (a\n- 1) x b"),
        ("0 <= x in `<image>`, a *head*, 2**24, a*b", "0 &lt;= x in `<image>`, a *head*, 2\\*\\*24, a\\*b"),
        (
            "see `tessera.nn.tokens.VisualTokens` and `host`",
            "see [`tessera.nn.tokens.VisualTokens`][tessera.nn.tokens.VisualTokens] and `host`",
        ),
        ("`a | b`  either", "`a | b`\n:   either"),
    ],
)
def test_docstrings_become_markdown(doc: str, markdown: str) -> None:
    assert reference.markdown(doc) == markdown


@pytest.mark.parametrize(
    ("text", "source", "page"),
    [
        (
            "[`Session.ask`](../src/tessera/generation/session.py)",
            "docs/a.md",
            "[`Session.ask`][tessera.generation.session.Session.ask]",
        ),
        ("[code](../src/tessera/generation/session.py)", "docs/a.md", "[code][tessera.generation.session]"),
        ("[claims](../src/tessera/claims/tokens/fopru.py)", "docs/a.md", "claims"),
        (
            "[rules](../CONTRIBUTING.md#tests) [design](design.md)",
            "docs/a.md",
            "[rules](contributing.md#tests) [design](design.md)",
        ),
        ("![x](docs/images/world.png) [e](docs/evidence.md)", "README.md", "![x](images/world.png) [e](evidence.md)"),
        ("[a site](https://example.org)", "README.md", "[a site](https://example.org)"),
    ],
)
def test_links_of_documents_lead_to_pages_of_the_site(text: str, source: str, page: str) -> None:
    assert reference.rewritten(text, source) == page


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None,
    reason="mkdocs comes with the extra `docs`",
)
def test_the_site_is_built_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in ("index.html", "architecture.html", "decisions.html", "reference/tessera.generation.session.html"):
        assert (tmp_path / "site" / page).is_file(), page
    session = (tmp_path / "site" / "reference" / "tessera.generation.session.html").read_text(encoding="utf-8")
    assert 'id="tessera.generation.session.Session.ask"' in session
    part = (tmp_path / "site" / "reference" / "tessera.parts.tokens.uniform.html").read_text(encoding="utf-8")
    assert 'class="nf">Config</span>' in part, "a configuration has no signature"
