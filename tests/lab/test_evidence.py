"""Evidence files: written whole, read with care, stale when what was measured has changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from tests.lab.catalog_wing import SOCKET, Wing, entry, wing_in

from tessera import registry
from tessera.errors import UserError
from tessera.lab import evidence
from tessera.lab.evidence import Evidence


@pytest.fixture
def wing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wing]:
    with wing_in(tmp_path, monkeypatch) as made:
        made.part("toy", catalog=244)
        yield made


def toy() -> registry.Part:
    return registry.get(SOCKET, "toy")


def test_what_is_written_is_read_again(wing: Wing) -> None:
    path = wing.proof("toy", entry(), catalog=244)
    assert path == evidence.path_of(toy()) == wing.evidence / "brain" / "toy.json"
    found = evidence.read(toy())
    assert found is not None and found.claims == [entry()] and found.catalog == 244
    assert json.loads(path.read_text()) == asdict(found)
    assert found.counts() == {"holds": 1}


def test_no_file_is_no_evidence(wing: Wing) -> None:
    assert evidence.read(toy()) is None
    assert evidence.status(toy(), None) == "no evidence"


def test_what_was_shipped_is_read_where_the_user_has_none(wing: Wing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shipped = tmp_path / "shipped"
    path = wing.proof("toy")
    (shipped / "evidence" / "brain").mkdir(parents=True)
    (shipped / "evidence" / "brain" / "toy.json").write_text(path.read_text().replace("toaster", "kettle"))
    monkeypatch.setattr(evidence, "PACKAGE", shipped)
    assert "toaster" in evidence.read(toy()).machine  # type: ignore[union-attr]
    path.unlink()
    assert "kettle" in evidence.read(toy()).machine  # type: ignore[union-attr]


def _without(key: str) -> str:
    plain = asdict(Evidence(part="toy", socket=SOCKET, catalog=1, claims=[entry()], hashes={}, versions={}, machine=""))
    del plain[key]
    return json.dumps(plain)


def _with(**changes: object) -> str:
    plain = asdict(Evidence(part="toy", socket=SOCKET, catalog=1, claims=[entry()], hashes={}, versions={}, machine=""))
    return json.dumps({**plain, **changes})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        (_with()[:200], "cannot be read"),
        ("[]", "is damaged"),
        ("null", "is damaged"),
        ("3", "is damaged"),
        (_without("claims"), "is damaged"),
        (_without("hashes"), "is damaged"),
        (_with(format=99), "has format 99, this version reads 1"),
        (_with(surprise=1), "is damaged"),
        (_with(claims=3), "is damaged"),
        (_with(claims=[3]), "is damaged"),
        (_with(claims=[{"id": "a"}]), "is damaged"),
        (_with(claims=[{**asdict(entry()), "verdict": "great"}]), "'great'"),
        (_with(claims=[{**asdict(entry()), "kind": "feeling"}]), "'feeling'"),
    ],
)
def test_a_damaged_file_is_refused_with_what_to_do(wing: Wing, text: str, says: str) -> None:
    path = wing.proof("toy")
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        evidence.read(toy())
    assert says in str(refused.value) and str(path) in str(refused.value) and "tessera verify" in str(refused.value)


def test_a_file_that_is_no_text_is_refused(wing: Wing) -> None:
    wing.proof("toy").write_bytes(b"\xff\xfe\x00evidence")
    with pytest.raises(UserError, match="cannot be read"):
        evidence.read(toy())


def test_evidence_is_stale_once_the_part_has_changed(wing: Wing) -> None:
    wing.proof("toy")
    found = evidence.read(toy())
    assert evidence.status(toy(), found) == "fresh"
    path = wing.parts / "toy.py"
    path.write_text(path.read_text() + "\n# a word\n")
    evidence.source_hash.cache_clear()
    assert evidence.status(toy(), found) == "stale"


@pytest.mark.parametrize("ids", [("stays", "went"), (), ("went",)])
def test_evidence_is_stale_when_the_part_claims_something_else(wing: Wing, ids: tuple[str, ...]) -> None:
    wing.proof("toy", *(entry(id=name) for name in ids))
    found = evidence.read(toy())
    wanted = "fresh" if ids == () else "stale"  # no entries given: the proof holds the part's own claim
    assert evidence.status(toy(), found) == wanted


def test_evidence_about_a_model_that_is_gone_is_stale(wing: Wing) -> None:
    wing.proof("toy")
    found = evidence.read(toy())
    assert found is not None
    gone = Evidence(**{**{f: getattr(found, f) for f in found.__dataclass_fields__}, "hashes": {"models/never": "0" * 16}})
    assert evidence.status(toy(), gone) == "stale"


def test_line_ends_of_sources_do_not_count(tmp_path: Path) -> None:
    one, two = tmp_path / "a" / "x.py", tmp_path / "b" / "x.py"
    for path, text in ((one, b"a = 1\nb = 2\n"), (two, b"a = 1\r\nb = 2\r\n")):
        path.parent.mkdir()
        path.write_bytes(text)
    assert evidence.source_hash(one) == evidence.source_hash(two)
    two.write_bytes(b"a = 1\r\nb = 3\r\n")
    evidence.source_hash.cache_clear()
    assert evidence.source_hash(one) != evidence.source_hash(two)
    assert evidence.source_hash(tmp_path / "nothing") is None


def test_a_reference_models_notes_are_no_part_of_its_hash(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    before = evidence.source_hash(tmp_path)
    (tmp_path / "evaluation.json").write_text("{}")
    evidence.source_hash.cache_clear()
    assert evidence.source_hash(tmp_path) == before


def test_outside_a_checkout_evidence_goes_to_the_users_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "PACKAGE", tmp_path / "site-packages" / "tessera")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert evidence.folder() == tmp_path / "data" / "tessera" / "evidence"


def test_a_third_partys_evidence_never_goes_into_our_source(wing: Wing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = evidence.part_path(toy())
    monkeypatch.undo()
    monkeypatch.setattr(evidence, "PACKAGE", tmp_path / "checkout" / "src" / "tessera")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    evidence.PACKAGE.mkdir(parents=True)
    (tmp_path / "checkout" / "pyproject.toml").touch()
    assert evidence.folder() == evidence.PACKAGE / "evidence"
    assert evidence.folder(made) == tmp_path / "data" / "tessera" / "evidence"


def test_the_summary_counts_parts_and_claims(wing: Wing) -> None:
    wing.part("spare")
    wing.proof("toy", entry(), catalog=244)
    spare = registry.get(SOCKET, "spare")
    found = evidence.summary({toy(): evidence.read(toy()), spare: evidence.read(spare)})
    assert found == {"parts": {"fresh": 1, "no evidence": 1}, "claims": {"holds": 1}}


def test_what_claims_measure_with_is_what_they_import_of_the_lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, part = tmp_path / "lab", tmp_path / "part.py"
    (lab / "instruments").mkdir(parents=True)
    (lab / "lab.py").write_text("core = 1")
    (lab / "instruments" / "trials.py").write_text("from tessera.lab.instruments import deeper")
    (lab / "instruments" / "deeper.py").write_text("x = 1")
    (lab / "instruments" / "other.py").write_text("y = 1")
    part.write_text("def claim(lab):\n    from tessera.lab.instruments.trials import dropping\n")
    monkeypatch.setattr(evidence, "PACKAGE", tmp_path)
    before = evidence.lab_hash(part)

    def changed(name: str) -> bool:
        path = lab / f"{name}.py"
        text = path.read_text()
        path.write_text(text + "\n# changed\n")
        evidence.source_hash.cache_clear()
        after = evidence.lab_hash(part)
        path.write_text(text)
        evidence.source_hash.cache_clear()
        return after != before

    named = ("lab", "instruments/trials", "instruments/deeper", "instruments/other")
    assert [changed(name) for name in named] == [True, True, True, False]
