"""The catalogue: its entries, how parts and evidence join them, what names mean, and what is damaged."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.lab.toys import EFFECT, EXACT, PART, SOCKET, WRONG, Wing, wing_in

from tessera.errors import TesseraError, UserError
from tessera.io import write_json
from tessera.lab import evidence, source, works
from tessera.lab.catalog import Catalog, System
from tessera.lab.claims import claims_of
from tessera.lab.verify import verify

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def wing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wing]:
    with wing_in(tmp_path, monkeypatch) as made:
        yield made


def load(number: int = 1) -> tuple[Catalog, System]:
    found = Catalog.load("brain")
    return found, found.systems[number - 1]


def measured(wing: Wing, *names: str) -> None:
    for name in names:
        verify(SOCKET, name, claims_of(SOCKET, name), wing.lab())


def build_script():
    spec = importlib.util.spec_from_file_location("build_catalog", ROOT / "scripts/build_catalog.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Entries


def test_421_entries_are_shipped() -> None:
    known = works.works()
    assert list(known) == list(range(1, 422))
    assert sum(not w.system for w in known.values()) == sum(w.kind == "survey" for w in known.values()) == 15
    assert all(w.name and w.title and w.kind and 1 <= w.core <= 5 for w in known.values())
    assert all(link.url.startswith("https://") and link.label for w in known.values() for link in w.links)
    assert (known[244].name, known[244].kind) == ("FoPru", "token_reduction")


def test_sentences_are_whole_and_without_doubt() -> None:
    abouts = [w.about for w in works.works().values() if w.about]
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
    a, b, c = works.parse(out.read_text())
    assert (a.title, a.about, a.links) == (
        "M3A",
        "A frozen encoder feeds a small model (e.g. GPT).",
        (works.Link("code", "https://github.com/a/b"),),
    )
    assert (b.about, b.links) == ("", ())
    assert c.about == "" and [link.label for link in c.links] == ["paper", "project page"]

    made.write_text(json.dumps(row) + "\n" + json.dumps(row))
    assert script.main() == 1, "a number that stands twice is refused"


@pytest.mark.parametrize("text", ["", "{", '{"format": 2, "systems": []}', '{"format": 1, "systems": [{"n": 1}]}'])
def test_a_damaged_catalogue_is_our_fault_in_a_sentence(text: str) -> None:
    with pytest.raises(TesseraError, match="damaged"):
        works.parse(text)


# Parts and evidence


def test_a_part_joins_its_number_and_its_evidence_decides_the_status(wing: Wing) -> None:
    row = load()[1].row()
    assert row == {
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
    assert load()[1].status == "no claims"
    wing.part("toy", EXACT, EFFECT, catalog=1)
    row = load()[1].row()
    assert (row["socket"], row["part"], row["status"], row["verdicts"]) == ("brain", "toy", "no evidence", {"not run": 2})
    measured(wing, "toy")
    row = load()[1].row()
    assert (row["status"], row["verdicts"]) == ("fresh", {"supported": 1, "holds": 1})


def test_what_is_written_down_and_what_is_computed_agree(wing: Wing) -> None:
    """Without a lab other code is not seen until its behaviour is recorded; with one it is."""
    wing.part("toy", EXACT, catalog=1)
    wing.part("user", EFFECT.replace('Vary("toy"', 'Vary("toy", uses=("toy",)'), catalog=2)
    measured(wing, "toy", "user")
    wing.part("toy", text=PART.replace("2 * value", "3 * value"), catalog=1)
    statuses = [[s.status for s in Catalog.load("brain", lab).systems[:2]] for lab in (None, wing.lab())]
    assert statuses == [["fresh", "fresh"], ["stale", "stale"]]
    measured(wing, "toy")
    statuses = [[s.status for s in Catalog.load("brain", lab).systems[:2]] for lab in (None, wing.lab())]
    assert statuses == [["fresh", "stale"], ["fresh", "stale"]]
    (user,) = load(2)[1].parts
    assert user.reasons == {"helps": ["part brain/toy behaves otherwise (1 then, 2 now)"]}


def test_a_claim_without_a_result_and_a_result_without_a_claim(wing: Wing) -> None:
    wing.part("toy", EXACT, catalog=1)
    measured(wing, "toy")
    wing.part("toy", EXACT, WRONG, catalog=1)
    (toy,) = load()[1].parts
    assert toy.status == "fresh" and toy.reasons == {"two_is_one": ["it was never run"]}
    assert toy.verdicts == {"holds": 1, "not run": 1}
    wing.part("toy", WRONG, catalog=1)
    (toy,) = load()[1].parts
    assert [(c and c.id, e and e.id) for c, e in toy.results()] == [("two_is_one", None), (None, "is_one")]


def test_what_was_found_before_a_claims_present_form_is_no_evidence(wing: Wing) -> None:
    """A file that holds the history of claims, none of which has run since."""
    wing.part("toy", EXACT, EFFECT, catalog=1)
    measured(wing, "toy")
    found = evidence.read(SOCKET, "toy")
    assert found is not None
    waiting = [replace(entry, verdict="not run", digest="") for entry in found.claims]
    write_json(wing.evidence / "toy.json", replace(found, claims=tuple(waiting)).plain())
    assert load()[1].row()["verdicts"] == {"not run": 2}
    statuses = [Catalog.load("brain", lab).systems[0].status for lab in (None, wing.lab())]
    assert statuses == ["no evidence", "no evidence"]
    write_json(wing.evidence / "toy.json", replace(found, claims=(found.claims[1], waiting[0])).plain())
    (toy,) = load()[1].parts
    assert toy.reasons == {"is_one": ["it was never run"]}


def test_two_parts_of_one_system_promise_what_the_weaker_one_does(wing: Wing) -> None:
    for name in ("toy", "other"):
        wing.part(name, EXACT, catalog=5)
    measured(wing, "other")
    row = load(5)[1].row()
    assert (row["part"], row["status"], row["verdicts"]) == ("other", "no evidence", {"holds": 1, "not run": 1})
    assert row["more"] == [{"socket": "brain", "part": "toy", "status": "no evidence", "verdicts": {"not run": 1}}]


def test_a_part_without_claims_does_not_speak_for_its_system(wing: Wing) -> None:
    wing.part("toy", EXACT, catalog=5)
    wing.part("helper", catalog=5)
    assert load(5)[1].status == "no evidence"
    measured(wing, "toy")
    assert load(5)[1].status == "fresh"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda p: p.write_text('{"format": 2, "claims": ['), "cannot be read"),
        (lambda p: p.write_text("[]"), "toy"),
        (lambda p: p.write_text(p.read_text().replace('"format": 2', '"format": 9')), "format 9"),
        (lambda p: p.write_text(p.read_text().replace('"holds"', '"proven"')), "damaged"),
        (lambda p: p.write_bytes(b"\xff\xfe"), "cannot be read"),
    ],
)
def test_damaged_evidence_is_a_sentence_and_the_others_are_still_listed(wing: Wing, damage, says: str) -> None:
    for number, name in ((1, "toy"), (2, "whole")):
        wing.part(name, EXACT, catalog=number)
    measured(wing, "toy", "whole")
    damage(wing.evidence / "toy.json")
    found, system = load()
    assert len(found.problems) == 1 and says in found.problems[0] and "toy" in found.problems[0]
    assert (system.status, system.parts[0].problem) == ("no evidence", found.problems[0])
    assert found.systems[1].status == "fresh"


def test_what_cannot_be_read_or_has_a_wrong_number_is_a_problem(wing: Wing) -> None:
    wing.part("broken", text="this is no Python")
    wing.part("vague", "CLAIMS = 3\n", catalog=2)
    wing.part("stranger", catalog=999)
    wing.part("toy", catalog=1)
    found, system = load()
    assert system.parts and [p.source.name for p in found.others] == ["stranger"]
    said = "\n".join(found.problems)
    assert "brain/broken cannot be read" in said and "brain/stranger names catalogue number 999" in said
    assert "the claims of brain/vague fail: tessera.claims.brain.vague: CLAIMS must be a list" in said
    assert found.systems[1].status == "no evidence"


def test_an_unknown_socket_is_answered_with_the_nearest() -> None:
    with pytest.raises(UserError, match="'brain'"):
        Catalog.load("brian")


# What files say


def test_a_file_is_read_without_importing_it(wing: Wing) -> None:
    wing.part("toy", catalog=7, text=PART + "\n\nraise RuntimeError('imported')\n")
    found = source.read("brain", "toy")
    assert (found.catalog, found.title) == (7, "toy reads <b>minds</b>: an e.g. toy")
    assert found.options == (source.Option("keep", "float", "0.5"), source.Option("must", "int", ""))
    assert found.section("what").endswith("It does little.")
    assert found.section("deviations") == "none known; see `keep`."
    assert found.section("sources").startswith("Doe et al.") and found.section("shapes").startswith("[B, N, D]")


def test_a_part_in_a_folder_is_read_from_its_init(wing: Wing) -> None:
    path = wing.part("toy", EXACT, catalog=3)
    (wing.parts / "toy").mkdir()
    shutil.move(path, wing.parts / "toy" / "__init__.py")
    wing.changed()
    assert source.read("brain", "toy").path == wing.parts / "toy"
    measured(wing, "toy")
    assert load(3)[1].status == "fresh"


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
