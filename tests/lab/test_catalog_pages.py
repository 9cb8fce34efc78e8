"""The catalogue's pages: whole, linked, escaped, without anything from elsewhere; and the bars of a claim."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from tests.lab.catalog_wing import entry, wing_in

from tessera.errors import UserError
from tessera.lab.catalog import Catalog
from tessera.lab.pages import layout, plot, site, text

VOID = ("meta", "link", "input", "br")


class Page(HTMLParser):
    """What a page refers to, its words, and whether its tags close in order."""

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
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag in ("path", "rect"):
            return
        if tag == "p" and self._open[-1] != "p":
            raise AssertionError("a paragraph closed by something inside it")
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.words += data + " "


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Pages of a catalogue with every kind of part."""
    folder = tmp_path_factory.mktemp("catalogue")
    with pytest.MonkeyPatch.context() as patch, wing_in(folder / "wing", patch) as wing:
        wing.part("toy", catalog=244)
        wing.proof("toy", entry(), catalog=244)
        wing.part("twin", catalog=244)
        wing.part("old", catalog=2)
        wing.proof("old", entry(verdict="not reproduced"), entry("more", verdict="crashed", measured={}, baseline={}, control={}))
        wing.part("plain")
        wing.part("silent", text='from tessera.registry import part\n@part("silent", socket="brain")\ndef f(): ...\n')
        wing.part("bad", catalog=3)
        wing.proof("bad").write_text("{<script>alert(2)</script>")
        yield site.write(Catalog.load("brain"), folder / "site").parent


def test_every_entry_has_a_page_and_every_link_leads_somewhere(full: Path) -> None:
    pages = {path: Page(path) for path in full.rglob("*.html")}
    assert len(pages) == 1 + 421 + 2
    names = [p for p in pages if re.match(r"\d{3}-", p.name)]
    assert len(names) == 421
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
    assert re.search(r"prefers-color-scheme: dark", (full / "systems/catalogue.css").read_text())


def test_nothing_that_is_written_by_people_becomes_markup(full: Path) -> None:
    for path in full.rglob("*.html"):
        written = path.read_text()
        assert "<script>" not in written and "<b>minds" not in written and "<i>toaster" not in written, path.name
        assert Page(path).scripts == 1
    words = Page(full / "systems/244-fopru.html").words
    for piece in ("<script>alert(1)</script>", "near the whole <script>", "because <script>", "<b>minds</b>", "a <i>toaster</i>"):
        assert piece in words, piece


def test_a_page_shows_what_a_person_needs(full: Path) -> None:
    page = Page(full / "systems/244-fopru.html")
    assert "https://arxiv.org/abs/3101.01234" in page.links
    for piece in (
        "0.91",
        "± 0.01",
        "0.93",
        "0.4",
        "baseline",
        "control",
        "holds",
        "seeds 0, 1, 2",
        "tessera verify toy",
        "torch 9.9",
    ):
        assert piece in " ".join(page.words.split()), piece
    assert "not run yet" in page.words, "the second part's claim"
    assert "stays" in page.ids

    page = Page(full / "systems/002-mova.html")
    assert "stale evidence" in page.words and "crashed" in page.words and "has changed" in page.words
    assert "tessera verify bad" in Page(full / "systems/003-fusecap.html").words
    assert "No part implements this method yet" in Page(full / "systems/004-m3vit.html").words
    assert "survey" in Page(full / "systems/083-vit-survey.html").words
    assert "no claims" in Page(full / "systems/brain.silent.html").words


def test_problems_are_told_without_the_folders_of_the_machine(full: Path) -> None:
    words = Page(full / "index.html").words
    assert "brain/bad.json" in words
    assert not [p for p in full.rglob("*.html") if str(full.parent) in p.read_text()]


def test_the_index_can_be_filtered_by_what_its_rows_carry(full: Path) -> None:
    written = (full / "index.html").read_text()
    row = re.search(r"<li data-n=\"244\"[^>]*>", written)
    assert row is not None
    for piece in ('data-socket="brain"', 'data-status="no evidence"', 'data-verdicts="holds"', 'data-kind="token_reduction"'):
        assert piece in row[0]
    for name in ("socket", "kind", "status", "verdict", "core", "sort"):
        assert f'<select name="{name}"' in written
    assert '<option value="brain">' in written and '<option value="not reproduced">' in written


def test_a_second_call_replaces_the_first_and_leaves_other_files(tmp_path: Path) -> None:
    few = Catalog(systems=Catalog.load("brain").systems[:2])
    site.write(few, tmp_path)
    (tmp_path / "CNAME").write_text("mine")
    (tmp_path / "systems" / "999-gone.html").write_text("old")
    assert site.write(few, tmp_path) == tmp_path / "index.html"
    assert (tmp_path / "CNAME").read_text() == "mine" and not (tmp_path / "systems" / "999-gone.html").exists()


def test_foreign_files_are_not_replaced(tmp_path: Path) -> None:
    found = Catalog.load("brain")
    for name, made in (("a", "index.html"), ("b", "systems/thesis.txt")):
        path = tmp_path / name / made
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        with pytest.raises(UserError, match="choose another folder"):
            site.write(found, tmp_path / name)
        assert path.read_text() == "mine"
    (tmp_path / "c").write_text("a file")
    with pytest.raises(UserError, match="is a file"):
        site.write(found, tmp_path / "c")


# Bars and words


def bars(svg: str) -> list[tuple[float, float]]:
    return [(float(x), float(w)) for x, w in re.findall(r'<rect x="([\d.]+)" y="1" width="([\d.]+)"', svg)]


def test_shares_are_drawn_from_0_to_1() -> None:
    drawn = plot.plots(entry())
    assert bars(drawn) == [(0.0, 91.0), (0.0, 93.0), (0.0, 40.0)]
    assert "M90.00 6H92.00" in drawn and "0 to 1" in drawn


def test_negative_numbers_go_left_of_zero() -> None:
    found = entry(measured={"gain": -2.0}, baseline={"gain": 4.0}, control={}, spread={})
    (left, width), (zero, right) = bars(plot.plots(found))
    assert left + width == pytest.approx(zero, abs=0.02) and right == pytest.approx(2 * width, abs=0.02)
    both = entry(measured={"gain": -2.0}, baseline={"gain": -4.0}, control={}, spread={"gain": 0.5})
    assert all(x >= 0 and x + w <= 100.01 for x, w in bars(plot.plots(both)))


def test_numbers_far_apart_are_dots_on_a_logarithmic_axis() -> None:
    drawn = plot.plots(entry(measured={"error": 1e-7}, baseline={}, control={"error": 0.1}, spread={}))
    assert "logarithmic" in drawn and not bars(drawn) and drawn.count('class="dot"') == 2


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_numbers_that_cannot_be_compared_are_written(value: float) -> None:
    drawn = plot.plots(entry(measured={"x": value}, baseline={"x": 0.0}, control={}, spread={}))
    assert "nan" not in drawn and "inf" not in drawn


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0, "0"),
        (0.91234, "0.9123"),
        (1204, "1,204"),
        (1.19e-7, "1.2 × 10⁻⁷"),
        (-0.4, "−0.4"),
        (3e15, "3.0 × 10¹⁵"),
        (math.nan, "–"),
    ],
)
def test_numbers_have_about_four_digits(value: float, said: str) -> None:
    assert text.number(value) == said


def test_docstrings_become_paragraphs_lists_code_and_links() -> None:
    made = text.prose("One `x<y`.\nStill.\n\n- a\n- b\n  more\n\n    code <1>\n\nSee https://example.org/a?b=1&c=2.")
    assert made == (
        "<p>One <code>x&lt;y</code>. Still.</p><ul><li>a</li><li>b more</li></ul><pre>    code &lt;1&gt;</pre>"
        '<p>See <a href="https://example.org/a?b=1&amp;c=2" rel="noreferrer">https://example.org/a?b=1&amp;c=2</a>.</p>'
    )
    assert text.link("javascript:alert(1)", "x") == "x"


def test_emphasis_is_words_between_stars_and_no_product() -> None:
    assert text.inline("*So* or *so it is*.") == "<em>So</em> or <em>so it is</em>."
    for plain in ("2 * x * y", "a*b*c", "* a*", "**kwargs and *args"):
        assert text.inline(plain) == plain
    assert text.inline("*<b>* `*code*`") == "<em>&lt;b&gt;</em> <code>*code*</code>"


def test_a_citation_ends_where_the_description_begins() -> None:
    assert text.citation('Doe, "A. B.", 2024, arXiv:2401.00001. It prunes.') == (
        'Doe, "A. B.", 2024, arXiv:2401.00001',
        "It prunes.",
    )
    assert text.citation("Doe, Title, 2024. It prunes.") == ("Doe, Title, 2024", "It prunes.")
    assert text.citation("Doe") == ("Doe", "")


def test_names_from_code_keep_their_small_letter() -> None:
    assert [text.capital(t) for t in ("the end", "a b", "q, k", "")] == ["The end", "A b", "q, k", ""]


@pytest.mark.parametrize(
    ("verdicts", "said"),
    [
        ({"holds": 2}, "holds"),
        ({"holds": 1, "not reproduced": 1}, "partly"),
        ({"partly": 1}, "partly"),
        ({"crashed": 1, "not applicable": 1}, "fails"),
        ({"not applicable": 1}, "unproven"),
        ({}, "unproven"),
    ],
)
def test_verdicts_in_one_word(verdicts: dict[str, int], said: str) -> None:
    assert layout.standing(verdicts, built=True) == said
    assert layout.standing(verdicts, built=False) == "none"


def test_hostile_names_stay_inside_the_folder() -> None:
    assert layout._slug("../../Etc <script>") == "etc-script"
    assert layout._slug("///") == "part"
