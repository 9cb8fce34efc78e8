"""The catalogue: its entries, how parts and evidence join them, what names mean, and what is damaged."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.catalog_wing import PART, Wing, entry, wing_in

from tessera.errors import TesseraError, UserError
from tessera.lab import catalog, evidence, source
from tessera.lab.catalog import Catalog, System

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def wing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wing]:
    with wing_in(tmp_path, monkeypatch) as made:
        yield made


def load(number: int = 1) -> tuple[Catalog, System]:
    found = Catalog.load("brain")
    return found, found.systems[number - 1]


def build_script():
    spec = importlib.util.spec_from_file_location("build_catalog", ROOT / "scripts/build_catalog.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Entries


def test_421_entries_are_shipped() -> None:
    works = catalog.works()
    assert list(works) == list(range(1, 422))
    assert sum(not w.system for w in works.values()) == sum(w.kind == "survey" for w in works.values()) == 15
    assert all(w.name and w.title and w.kind and 1 <= w.core <= 5 for w in works.values())
    assert all(link.url.startswith("https://") and link.label for w in works.values() for link in w.links)
    assert (works[244].name, works[244].kind) == ("FoPru", "token_reduction")


def test_sentences_are_whole_and_without_doubt() -> None:
    abouts = [w.about for w in catalog.works().values() if w.about]
    assert len(abouts) > 250
    assert not [a for a in abouts if "unsure" in a or a.count("(") != a.count(")") or a[-1] not in ".!?" or len(a) > 300]


def test_the_build_script_keeps_facts_and_leaves_doubts(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    script = build_script()
    row = {"n": 1, "name": "A", "title": "M$^3$A", "kind": "vlm", "system": True, "core": 5, "effort": "S", "claims": "secret"}
    row |= {"mechanism": "A frozen encoder feeds a small model (e.g. GPT). More.", "code": "https://github.com/a/b (known)"}
    unsure = row | {
        "n": 2,
        "mechanism": "Probably four layers (unsure). More.",
        "code": "https://github.com/a/b (unsure - guess)",
    }
    other = row | {"n": 3, "mechanism": "Train it long enough.", "code": "https://arxiv.org/abs/1234.56789 ; https://a.github.io"}
    made, out = tmp_path / "c.jsonl", tmp_path / "out.json"
    made.write_text("\n".join(json.dumps(r) for r in (other, row, unsure)))
    monkeypatch.setattr("sys.argv", ["build_catalog.py", str(made), str(out)])
    assert script.main() == 0
    a, b, c = catalog.parse(out.read_text())
    assert (a.title, a.about, a.links) == (
        "M3A",
        "A frozen encoder feeds a small model (e.g. GPT).",
        (catalog.Link("code", "https://github.com/a/b"),),
    )
    assert (b.about, b.links) == ("", ())
    assert c.about == "" and [link.label for link in c.links] == ["paper", "project page"]

    made.write_text(json.dumps(row) + "\n" + json.dumps(row))
    assert script.main() == 1, "a number that stands twice is refused"


@pytest.mark.parametrize("text", ["", "{", '{"format": 2, "systems": []}', '{"format": 1, "systems": [{"n": 1}]}'])
def test_a_damaged_catalogue_is_our_fault_in_a_sentence(text: str) -> None:
    with pytest.raises(TesseraError, match="damaged"):
        catalog.parse(text)


# Parts and evidence


def test_a_part_joins_its_number_and_its_evidence_decides_the_status(wing: Wing) -> None:
    assert load()[1].row() == {
        "n": 1,
        "name": "DenseFusion-1M (Perceptual Fusion)",
        "title": "DenseFusion-1M: Merging Vision Experts for Comprehensive Multimodal Perception",
        "kind": "data_engine",
        "core": 4,
        "socket": None,
        "part": None,
        "status": "none",
        "verdicts": {},
    }
    wing.part("toy", catalog=1)
    row = load()[1].row()
    assert (row["socket"], row["part"], row["status"], row["verdicts"]) == ("brain", "toy", "no evidence", {})

    wing.proof("toy", catalog=1)
    row = load()[1].row()
    assert (row["status"], row["verdicts"]) == ("fresh", {"holds": 1})

    wing.part("toy", catalog=1, text=PART + "\n\nCHANGED = True\n")
    assert load()[1].status == "stale"


def test_evidence_that_lacks_a_claim_is_stale(wing: Wing) -> None:
    wing.part("toy", catalog=1)
    wing.proof("toy", entry("another"))
    assert load()[1].status == "stale"
    wing.proof("toy", entry("stays"), entry("another"))
    assert load()[1].status == "stale"


def test_claims_that_code_makes_are_seen(wing: Wing) -> None:
    made = PART + '\n\nmore = claim("made", kind="exact")(lambda lab: None)\nmore.__claim__ = more.__claim__\n'
    wing.part("toy", text=made)
    wing.proof("toy", entry("stays"), entry("<lambda>"))
    assert load()[0].others[0].status == "fresh"


def test_two_parts_of_one_system_promise_what_the_weaker_one_does(wing: Wing) -> None:
    for name in ("toy", "other"):
        wing.part(name, catalog=5)
    wing.proof("other", entry(verdict="partly"))
    row = load(5)[1].row()
    assert (row["part"], row["status"], row["verdicts"]) == ("other", "no evidence", {"partly": 1})
    assert row["more"] == [{"socket": "brain", "part": "toy", "status": "no evidence", "verdicts": {}}]


def test_a_part_without_claims_does_not_speak_for_its_system(wing: Wing) -> None:
    wing.part("toy", catalog=5)
    wing.part("helper", catalog=5, text=PART.partition("@claim")[0])
    assert load(5)[1].status == "no evidence"
    wing.proof("toy")
    assert load(5)[1].status == "fresh"
    wing.part("toy", catalog=5, text=PART + "\n# more\n")
    wing.part("later", catalog=5)
    assert load(5)[1].status == "stale"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: p.write_text('{"format": 1, "claims": ['), "cannot be read"),
        (lambda p: p.write_text("[]"), "toy"),
        (lambda p: p.write_text(p.read_text().replace('"format": 1', '"format": 9')), "format 9"),
        (lambda p: p.write_text(p.read_text().replace("0.91", '"much"')), "no numbers"),
        (lambda p: p.write_text(p.read_text().replace('"holds"', '"proven"')), "damaged"),
        (lambda p: p.write_bytes(b"\xff\xfe"), "cannot be read"),
    ],
)
def test_damaged_evidence_is_a_sentence_and_the_others_are_still_listed(wing: Wing, damage, says: str) -> None:
    for number, name in ((1, "toy"), (2, "whole")):
        wing.part(name, catalog=number)
        wing.proof(name)
    damage(wing.evidence / "brain" / "toy.json")
    found, system = load()
    assert len(found.problems) == 1 and says in found.problems[0] and "toy" in found.problems[0]
    assert (system.status, system.parts[0].problem) == ("no evidence", found.problems[0])
    assert found.systems[1].status == "fresh"


def test_a_part_that_cannot_be_read_or_has_a_wrong_number_is_a_problem(wing: Wing) -> None:
    wing.part("broken", text="this is no Python")
    wing.part("stranger", catalog=999)
    wing.part("toy", catalog=1)
    found, system = load()
    assert system.parts and [p.source.name for p in found.others] == ["stranger"]
    assert [p for p in found.problems if "brain/broken cannot be read" in p]
    assert [p for p in found.problems if "brain/stranger names catalogue number 999" in p]


def test_an_unknown_socket_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="'brain'"):
        Catalog.load("brian")


# What files say


def test_a_file_is_read_without_importing_it(wing: Wing) -> None:
    wing.part("toy", catalog=7, text=PART + "\n\nraise RuntimeError('imported')\n")
    found = source.read("brain", "toy")
    assert (found.catalog, found.title) == (7, "toy reads <b>minds</b>: an e.g. toy")
    assert found.options == (source.Option("keep", "float", "0.5"), source.Option("must", "int", ""))
    (claim,) = found.claims
    assert (claim.id, claim.kind, claim.paper, claim.about) == (
        "stays",
        "effect",
        "section 4",
        "Against the whole & against chance.",
    )
    assert found.section("what").endswith("It does little.")
    assert found.section("deviations") == "none known; see `keep`."
    assert found.section("sources").startswith("Doe et al.") and found.section("shapes").startswith("[B, N, D]")


def test_a_part_in_a_folder_is_read_from_its_init(wing: Wing) -> None:
    path = wing.part("toy", catalog=3)
    (wing.parts / "toy").mkdir()
    shutil.move(path, wing.parts / "toy" / "__init__.py")
    assert source.read("brain", "toy").path == wing.parts / "toy"
    wing.proof("toy")
    assert load(3)[1].status == "fresh"
    (wing.parts / "toy" / "kernel.py").write_text("x = 1\n")
    evidence.source_hash.cache_clear()
    assert load(3)[1].status == "stale"


def test_inherited_options_are_seen_by_importing(wing: Wing) -> None:
    base = "import dataclasses\n@dataclasses.dataclass\nclass Base:\n    depth: int = 2\n"
    config = "    @dataclasses.dataclass\n    class Config(Base):\n        keep: float = 0.5\n"
    text = f'from tessera.registry import part\n{base}\n@part("toy", socket="brain")\nclass Toy:\n{config}'
    wing.part("toy", text=text)
    found = source.read("brain", "toy")
    assert found.options is None
    assert [(o.name, o.default) for o in found.settings()] == [("depth", "2"), ("keep", "0.5")]


# Names


def test_parts_numbers_and_published_names_are_found(wing: Wing) -> None:
    wing.part("toy", catalog=244)
    found = Catalog.load("brain")
    for word in ("toy", "brain/toy", "brain.toy", "244", "#244", "FoPru", "fopru"):
        work, parts = found.find(word)
        assert work is not None and work.n == 244 and [p.source.name for p in parts] == ["toy"], word
    assert found.find("2")[1] == ()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("toyy", "Did you mean 'toy'"),
        ("flamigo", "'Flamingo'"),
        ("0", "1 to 421"),
        ("422", "1 to 421"),
        ("zzzzqq", "`tessera list`"),
    ],
)
def test_what_does_not_exist_is_answered_with_the_nearest(wing: Wing, word: str, says: str) -> None:
    wing.part("toy", catalog=244)
    with pytest.raises(UserError, match=r"there is no") as error:
        Catalog.load("brain").find(word)
    assert says in str(error.value)
