"""The second edition's pages: whole, linked, escaped, without anything from elsewhere; every verdict, and the dots of a claim."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from tests.lab import page_examples as examples

from tessera import registry
from tessera.errors import UserError
from tessera.io import write_json
from tessera.lab import catalog as catalogs
from tessera.lab import evidence, source
from tessera.lab.catalog import Catalog
from tessera.lab.claims import claims_of
from tessera.lab.evidence import Entry, Evidence
from tessera.lab.experiment import Paper, below, loses, reaches, retains
from tessera.lab.judge import VERDICTS, Estimate
from tessera.lab.pages import layout, site
from tessera.lab.pages.claim import view

VOID = ("meta", "link", "input", "br")


class Page(HTMLParser):
    """What a page refers to, its words, its claims with their verdicts, and whether its tags close in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.scripts = 0
        self.words = ""
        self._open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert not self._open, f"{path.name}: {self._open} never closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert tag not in ("img", "iframe", "object", "embed", "video", "audio"), tag
        if tag == "a":
            self.links.append(found["href"] or "")
        elif found.get("href") or found.get("src"):
            self.loads.append(found.get("href") or found.get("src") or "")
        self.scripts += tag == "script"
        assert not [name for name in found if name.startswith("on")], f"an event handler: {found}"
        if found.get("id"):
            assert found["id"] not in self.ids, found["id"]
            self.ids.add(found["id"] or "")
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "path"

    def handle_endtag(self, tag: str) -> None:
        if tag != "path":
            assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.words += data + " "


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of a catalogue with every kind of part, and claims of every verdict."""
    return site.write(examples.catalog(), tmp_path_factory.mktemp("catalogue")).parent


# Whole pages


def test_every_entry_has_a_page_and_every_link_leads_somewhere(full: Path) -> None:
    pages = {path: Page(path) for path in full.rglob("*.html")}
    assert len(pages) == 1 + 421 + 1
    assert len([p for p in pages if re.match(r"\d{3}-", p.name)]) == 421
    for path, page in pages.items():
        for reference in page.links + page.loads:
            address = urlsplit(reference)
            if address.scheme:
                assert reference in page.links and address.scheme == "https", f"{path.name} loads {reference}"
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            assert target.is_file(), f"{path.name}: {reference}"
    index = pages[full / "index.html"]
    reached = {(full / link).resolve() for link in index.links if not urlsplit(link).scheme}
    assert reached == {p.resolve() for p in pages} - {(full / "index.html").resolve()}
    assert {"list", "q", "count", "mosaic", "filters", "nothing"} <= index.ids


def test_styles_and_scripts_load_nothing_from_elsewhere(full: Path) -> None:
    for name in ("catalogue.css", "catalogue.js"):
        found = (full / "systems" / name).read_text()
        assert found and "http" not in found and "@import" not in found and "url(" not in found
    assert "prefers-color-scheme: dark" in (full / "systems/catalogue.css").read_text()


def test_nothing_that_is_written_by_people_becomes_markup(full: Path) -> None:
    for path in full.rglob("*.html"):
        written = path.read_text()
        for piece in ("<script>", "<b>minds", "<b>more", "<i>toaster", "<i>often", "<img", "<all>", "<4>", 'href="javascript'):
            assert piece not in written, f"{path.name}: {piece}"
        assert Page(path).scripts == 1
    page = Page(full / "systems/244-fopru.html")
    for piece in (examples.HOSTILE, "near <script>", "<b>minds</b>", "a <i>toaster</i>", "sleeps <i>often</i>", "table <4>"):
        assert piece in page.words, piece
    assert page.words.count(examples.HOSTILE) >= 2 * 6  # promise, note, amended, history, docstring, claims file: of both parts


def test_every_verdict_has_a_card_a_colour_and_a_tile(full: Path) -> None:
    _, entries = examples.claims_and_results()
    assert {entry.verdict for entry in entries} | {"not run"} == set(VERDICTS), "the example lacks a verdict"
    written, style = (full / "systems/244-fopru.html").read_text(), (full / "systems/catalogue.css").read_text()
    for verdict in VERDICTS:
        name = layout.css(verdict)
        assert f'class="claim v-{name}"' in written and f'<b class="verdict">{verdict}</b>' in written
        assert f".tiles .v-{name} " in style and f'<i class="v-{name}"></i>' in (full / "index.html").read_text()
    cards = re.findall(r'<article class="claim v-([\w-]+)" id="([\w.]+)">', written)
    expected = {entry.id: layout.css(entry.verdict) for entry in entries} | {"waiting": "not-run"}
    assert {i: v for v, i in cards if "." not in i} == expected
    assert len(cards) == 2 * len(expected), "the second part's anchors have a prefix"


def test_a_page_shows_the_experiment_the_result_and_the_history(full: Path) -> None:
    page = Page(full / "systems/244-fopru.html")
    for piece in (
        "toy_training", "version 3", "steps = 200", "connector = {kind: toy, queries: 16}", "shuffled labels",
        "control is below treatment", "5, 8, 12 seeds; intervals of 98.3 %", "8 seeds at look 2 of at most 3",
        "is found nine times in ten", "Not shown: control is below treatment", "needed 0.1", "the paper's number (table <4>)",
        "Amended after a result was seen.", "amended 2 times", "0123456789ab", "−0.080 to +0.140", "Changed because:",
        "prefill ratio, timed", "1.7 to 2.2", "1.2 × 10⁻⁷", "stale evidence", "core world behaves otherwise (2 then, 3 now)",
        "does not make this claim any more", "tessera verify toy", "must<", "part brain/toy 1",
    ):  # fmt: skip
        assert piece in page.words, piece
    assert "https://arxiv.org/abs/3101.01234" in page.links
    words = Page(full / "systems/003-fusecap.html").words
    assert "brain/bad.json is <script> damaged" in words and "makes no claims" not in words
    assert "makes no claims" in Page(full / "systems/brain.silent.html").words
    assert "No part implements this method yet" in Page(full / "systems/004-m3vit.html").words
    assert "survey" in Page(full / "systems/083-vit-survey.html").words


def test_the_index_counts_verdicts_and_carries_what_is_filtered(full: Path) -> None:
    written, words = (full / "index.html").read_text(), Page(full / "index.html").words
    row = re.search(r'<li data-n="244".*?</li>', written, re.S)
    assert row is not None
    for piece in (
        'data-socket="brain"',
        'data-status="stale"',
        'data-kind="token_reduction"',
        "data-verdicts=",
        "6 supported, 2 hold",
    ):
        assert piece in row[0], piece
    for name in ("socket", "kind", "status", "verdict", "core", "sort"):
        assert f'<select name="{name}"' in written
    assert '<option value="not applicable">' in written
    assert "brain/bad.json" in words


def test_a_second_call_replaces_the_first_and_leaves_other_files(tmp_path: Path) -> None:
    few = Catalog(systems=examples.catalog().systems[:2])
    site.write(few, tmp_path)
    (tmp_path / "CNAME").write_text("mine")
    (tmp_path / "systems" / "999-gone.html").write_text("old")
    assert site.write(few, tmp_path) == tmp_path / "index.html"
    assert (tmp_path / "CNAME").read_text() == "mine" and not (tmp_path / "systems" / "999-gone.html").exists()


def test_foreign_files_are_not_replaced(tmp_path: Path) -> None:
    found = Catalog(systems=examples.catalog().systems[:2])
    for name, made in (("a", "index.html"), ("b", "systems/thesis.txt")):
        path = tmp_path / name / made
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        with pytest.raises(UserError, match="choose another folder"):
            site.write(found, tmp_path / name)
        assert path.read_text() == "mine"


def test_templates_refuse_a_name_that_is_not_there() -> None:
    from jinja2 import UndefinedError

    with pytest.raises(UndefinedError, match="title"):
        layout.render("base.html", root="", kind="")


def test_pages_are_made_without_torch() -> None:
    code = (
        "import sys; from tessera.lab.catalog import Catalog; from tessera.lab.pages import site\n"
        "site.files(Catalog.load('tokens')); print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


# The catalogue


@pytest.fixture
def proven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """FoPru's evidence in a folder of its own: the claims as they are now, one result each."""
    monkeypatch.setattr(evidence, "folder", lambda *_: tmp_path)
    monkeypatch.setattr(evidence, "PACKAGE", tmp_path / "nothing-shipped")
    entries = tuple(
        Entry(
            id=c.id,
            kind=c.kind,
            promise=c.promise,
            verdict="holds",
            digest=c.digest(),
            depends={"part tokens/fopru": "1"},
            primary=estimate(c.primary.words) if c.kind == "effect" else None,
            secondary=tuple(estimate(effect.words) for effect in getattr(c, "secondary", ())),
        )
        for c in claims_of("tokens", "fopru")
    )
    made = Evidence(part="fopru", socket="tokens", catalog=244, claims=entries, behaviour={"x": [1.0]})
    path = evidence.path_of("tokens", "fopru", Path("fopru.py"))  # a path is given so that the part is not imported
    write_json(path, made.plain())
    return path


def estimate(words: str) -> Estimate:
    return Estimate(words=words, value=0.1, low=0.0, high=0.2, margin=0.0)


def fopru() -> catalogs.Built:
    _, (part,) = Catalog.load("tokens").find("fopru")
    return part


def test_evidence_is_fresh_until_what_is_written_down_differs(proven: Path) -> None:
    assert fopru().status == "fresh" and not fopru().reasons
    found = evidence.parse(proven)
    changes = {
        "the experiment is another one": replace(found, claims=tuple(replace(e, digest="0" * 12) for e in found.claims)),
        "secondary effects are others": replace(
            found,
            claims=tuple(replace(e, secondary=(estimate("another"),)) if e.kind == "effect" else e for e in found.claims),
        ),
        "behaves otherwise": replace(found, version=2),
        "it crashed": replace(found, claims=tuple(replace(e, verdict="crashed") for e in found.claims)),
    }
    for said, changed in changes.items():
        write_json(proven, changed.plain())
        assert fopru().status == "stale" and all(said in " ".join(why) for why in fopru().reasons.values()), said
    beside = tuple(replace(e, verdict="not applicable", primary=None, secondary=()) for e in found.claims)
    write_json(proven, replace(found, claims=beside).plain())
    assert fopru().status == "fresh"  # a precondition did not hold, so nothing was measured
    write_json(proven, replace(found, claims=found.claims[:1]).plain())
    assert fopru().status == "fresh" and {why for (why,) in fopru().reasons.values()} == {"it was never run"}
    proven.unlink()
    assert fopru().status == "no evidence" and set(fopru().verdicts) == {"not run"}


def test_damaged_evidence_is_a_problem_of_one_part(proven: Path) -> None:
    proven.write_text("{")
    found = Catalog.load("tokens")
    assert len(found.problems) == 1 and "fopru" in found.problems[0]
    assert len(found.parts()) == len(registry.names("tokens"))
    assert layout.local(found.problems[0]).count("/") == 1, "no folder of this machine"


def test_a_part_says_what_it_is_without_being_imported() -> None:
    for socket in registry.SOCKETS:
        for name in registry.names(socket):
            found = source.read(socket, name)
            assert found.title and found.section("what"), f"{socket}/{name}"


# One claim


@pytest.mark.parametrize(
    ("effect", "needed"),
    [
        (retains("baseline", Paper(0.9, "table 1")), 0.72),
        (loses("baseline", Paper(0.1, "table 1")), 0.7),
        (reaches(Paper(0.85, "table 1")), 0.85),
        (below("baseline", Paper(0.2, "table 1")), 0.6),
        (below("baseline"), None),
    ],
)
def test_the_papers_number_is_marked_where_the_treatment_has_to_be(effect: examples.Experiment, needed: float | None) -> None:
    claim = examples.experiment("x", primary=effect, secondary=())
    entry = examples.result(claim, (0.9, 0.8, 0.5), spread=0.0)
    arms = view(claim, entry).panels[0]
    marks = {row.dot.name: row.dot.mark for row in arms.rows if row.dot.mark is not None}
    assert marks == ({} if needed is None else {"treatment": pytest.approx(needed)})
    assert view(None, entry).panels[0].key == "", "the terms are those of the claim, which is gone"
    other = examples.experiment("x", primary=effect, secondary=(), protocol=examples.Toy(steps=9))
    assert view(other, entry).panels[0].key == "" and view(other, entry).changed


def test_the_primary_effect_is_coloured_by_what_the_interval_says() -> None:
    claim = examples.experiment("x", secondary=())
    for means, state in (((0.9, 0.7, 0.5), "shown"), ((0.7, 0.9, 0.5), "refuted"), ((0.82, 0.8, 0.5), "open")):
        entry = examples.result(claim, means)
        rows = [row.dot for panel in view(claim, entry).panels for row in panel.rows if "primary" in row.dot.css]
        assert [dot.css for dot in rows] == [f"primary {state}"]
        assert entry.verdict == {"shown": "supported", "refuted": "contradicted", "open": "inconclusive"}[state]


def test_an_interval_without_ends_is_drawn_to_the_edge() -> None:
    claim = examples.experiment("x", secondary=())
    entry = examples.result(claim, (0.9, 0.7, 0.5))
    one = Estimate(words="one seed", value=0.2, low=-math.inf, high=math.inf, margin=0.0, detectable=math.inf)
    shown = view(claim, replace(entry, primary=one, verdict="inconclusive"))
    row = next(row for panel in shown.panels for row in panel.rows if row.dot.name == "one seed")
    assert 'class="whisk" d="M0.00 6H100.00"' in row.svg and row.dot.ends == "−∞ to +∞"
    assert "inf" not in shown.meaning + str(row.svg)


# Systems in one word


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ({"supported": 2, "holds": 1, "not applicable": 1}, "shown"),
        ({"supported": 2, "holds": 1, "not run": 1}, "partly"),
        ({"supported": 1, "contradicted": 1}, "partly"),
        ({"holds": 1, "inconclusive": 1}, "partly"),
        ({"inconclusive": 1, "crashed": 1}, "open"),
        ({"contradicted": 1, "invalid": 1}, "fails"),
        ({"not applicable": 1, "not run": 3}, "unproven"),
        ({}, "unproven"),
    ],
)
def test_verdicts_in_one_word(verdicts: dict[str, int], said: str) -> None:
    assert layout.standing(verdicts, built=True) == said
    assert layout.standing(verdicts, built=False) == "none"
    assert set(layout.SHOWN + layout.OPEN + layout.REFUTED) == set(VERDICTS) - {"not applicable", "not run"}


def test_hostile_names_stay_inside_the_folder() -> None:
    assert layout.slug("../../Etc <script>") == "etc-script"
    assert layout.slug("///") == "part"
