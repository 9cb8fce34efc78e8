"""Evidence files: written whole, read with care, stale when what they were measured with behaves otherwise, and only then."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.lab.toys import COST, EFFECT, EXACT, PART, SOCKET, ToyProtocol, Wing, wing_in

from tessera.errors import UserError
from tessera.lab import evidence, freshness, recording
from tessera.lab.claims import claims_of
from tessera.lab.evidence import Entry, Evidence
from tessera.lab.verify import verify

ENTRY = Entry(id="stays", kind="effect", promise="It stays.", verdict="supported", measured={"accuracy": 0.91}, seconds=3.5)


@pytest.fixture
def wing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wing]:
    with wing_in(tmp_path, monkeypatch) as made:
        made.part("toy", EXACT, EFFECT, COST, catalog=244)
        yield made


def measured(wing: Wing, *names: str) -> None:
    for name in names:
        verify(SOCKET, name, claims_of(SOCKET, name), wing.lab())


def stale(wing: Wing, name: str = "toy") -> dict[str, list[str]]:
    """Claim -> why, as a new process sees it."""
    status, reasons = freshness.status(SOCKET, name, evidence.read(SOCKET, name), wing.lab())
    assert (status == "stale") == any(why != ["it was never run"] for why in reasons.values())
    return reasons


# Files


def test_what_is_written_is_read_again(wing: Wing) -> None:
    recording.update(SOCKET, "toy", [replace(ENTRY, id="helps")], wing.lab(), claims_of(SOCKET, "toy"))
    path = evidence.path_of(SOCKET, "toy")
    assert path == wing.evidence / "toy.json"
    found = evidence.read(SOCKET, "toy")
    assert found is not None and found.catalog == 244 and found.behaviour == {"act": [2.0, 4.0, 6.0]}
    assert found.counts() == {"supported": 1}
    assert json.loads(path.read_text()) == json.loads(json.dumps(found.plain()))


def test_results_are_put_beside_each_other_and_those_of_no_claim_go(wing: Wing) -> None:
    claims = claims_of(SOCKET, "toy")
    for name in ("saves", "helps", "gone"):
        recording.update(SOCKET, "toy", [replace(ENTRY, id=name)], wing.lab(), claims)
    found = evidence.read(SOCKET, "toy")
    assert found is not None and [entry.id for entry in found.claims] == ["helps", "saves"], "in the claims' order"


def test_no_file_is_no_evidence(wing: Wing) -> None:
    assert evidence.read(SOCKET, "toy") is None
    assert freshness.status(SOCKET, "toy", None, wing.lab()) == ("no evidence", {})


def plain(**changes: object) -> str:
    made = Evidence(part="toy", socket=SOCKET, catalog=1, claims=(ENTRY,), behaviour={"act": [1.0]}).plain()
    return json.dumps({name: value for name, value in {**made, **changes}.items() if value != "left out"})


def claim(**changes: object) -> str:
    return plain(claims=[{**ENTRY.plain(), **changes}])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "cannot be read"),
        ("{", "cannot be read"),
        (plain()[:200], "cannot be read"),
        ("[]", "is damaged"),
        ("null", "is damaged"),
        ("3", "is damaged"),
        (plain(claims="left out"), "is damaged"),
        (plain(part="left out"), "is damaged"),
        (plain(format="left out"), "is damaged"),
        (plain(format=1), "has format 1, this version reads 2"),
        (plain(surprise=1), "is damaged"),
        (plain(claims=3), "is damaged"),
        (plain(claims=[3]), "is damaged"),
        (plain(claims=[{"id": "a"}]), "is damaged"),
        (claim(verdict="great"), "'great'"),
        (claim(kind="feeling"), "'feeling'"),
        (claim(seconds="long"), "no numbers"),
        (claim(measured={"accuracy": "much"}), "no numbers"),
        (claim(primary={"words": "more"}), "is damaged"),
        (claim(arms=[{"name": "toy", "label": "toy", "metrics": {"accuracy": ["a", "b", "c"]}}]), "no numbers"),
    ],
)
def test_a_damaged_file_is_refused_with_what_to_do(wing: Wing, text: str, says: str) -> None:
    path = wing.evidence / "toy.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    with pytest.raises(UserError) as refused:
        evidence.read(SOCKET, "toy")
    assert says in str(refused.value) and str(path) in str(refused.value) and "tessera verify" in str(refused.value)


def test_a_file_that_is_no_text_is_refused(wing: Wing) -> None:
    wing.evidence.mkdir(parents=True)
    (wing.evidence / "toy.json").write_bytes(b"\xff\xfe\x00evidence")
    with pytest.raises(UserError, match="cannot be read"):
        evidence.read(SOCKET, "toy")


# Where they lie


def test_outside_a_checkout_everything_goes_to_the_users_data_folder(wing: Wing, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was shipped is read where the user has none, and never written."""
    measured(wing, "toy")
    shipped = {path: path.read_bytes() for path in wing.evidence.parent.rglob("*.json")}
    (wing.package.parent.parent / "pyproject.toml").unlink()
    data = wing.package / "data"
    monkeypatch.setenv("XDG_DATA_HOME", str(data))
    assert stale(wing) == {}
    measured(wing, "toy")
    assert [path.name for path in data.rglob("*.json")] == ["toy.json"], "what behaves as shipped is not recorded again"
    monkeypatch.setattr(ToyProtocol, "behaves", 2.0)
    (wing.package / "a_change").touch()
    wing.changed()
    assert stale(wing).keys() == {"helps"}
    measured(wing, "toy")
    assert sorted(path.name for path in data.rglob("*.json")) == ["behaviour.json", "toy.json"]
    assert evidence.goldens()["protocol toy"]["version"] == 2 and stale(wing) == {}
    assert {path: path.read_bytes() for path in wing.evidence.parent.rglob("*.json")} == shipped


def test_a_third_partys_evidence_never_goes_into_our_source(wing: Wing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert evidence.folder() == evidence.folder(wing.parts / "toy.py") == wing.package / "evidence"
    assert evidence.folder(tmp_path / "site-packages" / "theirs.py") == tmp_path / "data" / "tessera" / "evidence"


# Freshness


def rewritten(wing: Wing, change: Callable[[str], str]) -> None:
    path = wing.parts / "toy.py"
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    wing.changed()


def test_what_does_the_same_is_fresh_however_it_is_written(wing: Wing) -> None:
    measured(wing, "toy")
    for change in (
        lambda text: text + "\n# a word\n",
        lambda text: text.replace("[2 * value for value in x]", "list(map(lambda v: v + v, x))"),
        lambda text: text.replace("It does little.", "It does next to nothing."),
    ):
        rewritten(wing, change)
        assert stale(wing) == {}


def test_what_does_something_else_makes_stale_what_depends_on_it(wing: Wing) -> None:
    wing.part("other", EXACT, EFFECT.replace('Vary("shuffled"', 'Vary("shuffled", uses=("toy",)'))
    measured(wing, "toy", "other")
    rewritten(wing, lambda text: text.replace("2 * value", "-2 * value"))
    assert stale(wing).keys() == {"is_one", "helps", "saves"}
    assert stale(wing, "other").keys() == {"helps"}, "the one whose control is the toy"
    assert stale(wing, "other")["helps"] == ["part brain/toy behaves otherwise (1 then, changed now)"]
    measured(wing, "toy")
    assert stale(wing) == {} and evidence.read(SOCKET, "toy").version == 2  # type: ignore[union-attr]
    assert stale(wing, "other")["helps"] == ["part brain/toy behaves otherwise (1 then, 2 now)"]
    measured(wing, "other")
    assert stale(wing, "other") == {}


def test_a_protocol_that_measures_otherwise_makes_its_claims_stale(wing: Wing, monkeypatch: pytest.MonkeyPatch) -> None:
    measured(wing, "toy")
    monkeypatch.setattr(ToyProtocol, "behaves", 1.000001)  # other kernels round otherwise
    (wing.package / "a_change").touch()
    wing.changed()
    assert stale(wing) == {}
    monkeypatch.setattr(ToyProtocol, "behaves", 1.1)
    (wing.package / "another").touch()
    wing.changed()
    assert stale(wing) == {"helps": ["protocol toy behaves otherwise (1 then, changed now)"]}


def test_another_experiment_is_stale_and_other_words_are_not(wing: Wing) -> None:
    measured(wing, "toy")
    wing.part("toy", EXACT, EFFECT.replace("It helps.", "It really helps.").replace("table 2", "table 4"), COST, catalog=244)
    assert stale(wing) == {}
    wing.part("toy", EXACT, EFFECT.replace("0.5", "0.6"), COST.replace("Paper(2.0", "Paper(3.0"), catalog=244)
    assert stale(wing) == {name: ["the experiment is another one"] for name in ("helps", "saves")}
    wing.part("toy", EXACT, EFFECT, COST, INTERLOPER, catalog=244)
    assert stale(wing) == {"new": ["it was never run"]}


INTERLOPER = 'CLAIMS.append(Exact(id="new", promise="It is new.", run=true))\n'


def test_a_part_that_fails_behaves_otherwise(wing: Wing) -> None:
    measured(wing, "toy")
    wing.part("toy", text=PART.replace("2 * value", "2 / 0 * value"))
    assert stale(wing).keys() == {"is_one", "helps", "saves"}
