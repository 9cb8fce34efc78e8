"""Running claims: what is kept, what a crash does, what goes on after an interruption."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.catalog_wing import SOCKET, Wing, wing_in
from tests.lab.claiming import CRASH, EFFECT, EXACT, HEAD, INTERRUPTED

from tessera import registry
from tessera.lab import evidence
from tessera.lab.claim import claims_of
from tessera.lab.lab import Lab
from tessera.lab.verify import run, verify


@pytest.fixture
def wing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wing]:
    with wing_in(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(cache=tmp_path / "cache")


def part(wing: Wing, *claims: str) -> registry.Part:
    wing.part("toy", catalog=7, text=HEAD + "".join(claims))
    return registry.get(SOCKET, "toy")


def log(wing: Wing) -> list[str]:
    return (wing.parts / "toy.log").read_text().split()


def test_all_claims_run_and_are_written(wing: Wing, lab: Lab) -> None:
    toy = part(wing, EXACT, EFFECT)
    heard: list[tuple[str, str]] = []
    done = verify(toy, lab, on_claim=lambda _, c, e: heard.append((c.id, "begins" if e is None else e.verdict)))
    assert heard == [("is_one", "begins"), ("is_one", "holds"), ("helps", "begins"), ("helps", "partly")]
    assert done.written == evidence.path_of(toy)
    found = evidence.read(toy)
    assert found == done.evidence and evidence.status(toy, found) == "fresh"
    assert found is not None and found.catalog == 7 and {"part", "lab", "world"} <= found.hashes.keys() | {"world", "lab"}
    helps = found.claims[1]
    assert helps.measured == {"accuracy": 0.333333} and helps.seeds == [0, 1, 2] and helps.note == "too little"
    assert helps.checks == {"better": True, "much better": False} and helps.seconds >= 0
    assert not [f for f in (wing.evidence / SOCKET).iterdir() if f.name != "toy.json"]


def test_a_crash_is_a_result_and_the_others_run(wing: Wing, lab: Lab) -> None:
    done = verify(part(wing, CRASH, EXACT), lab)
    assert [e.verdict for e in done.evidence.claims] == ["crashed", "holds"]
    crashed = done.evidence.claims[0]
    assert crashed.note.startswith("ValueError: no ground (toy.py, line ") and not crashed.checks
    assert done.written is not None


def test_an_interruption_keeps_what_was_finished(wing: Wing, lab: Lab) -> None:
    toy = part(wing, EXACT, EFFECT, INTERRUPTED)
    with pytest.raises(KeyboardInterrupt):
        verify(toy, lab)
    assert evidence.read(toy) is None
    done = verify(toy, lab)
    assert log(wing) == ["is_one", "helps", "waits", "waits"]
    assert [e.id for e in done.evidence.claims] == ["is_one", "helps", "waits"]
    assert done.written is not None and not list((wing.evidence / SOCKET).glob(".*"))
    verify(toy, lab)
    assert log(wing).count("is_one") == 2, "a finished run is no longer gone on with"


def test_old_evidence_stays_until_new_evidence_is_whole(wing: Wing, lab: Lab) -> None:
    toy = part(wing, EXACT, INTERRUPTED)
    path = wing.proof("toy")
    before = path.read_text()
    with pytest.raises(KeyboardInterrupt):
        verify(toy, lab)
    assert path.read_text() == before


def test_what_was_finished_with_other_code_is_measured_again(wing: Wing, lab: Lab) -> None:
    with pytest.raises(KeyboardInterrupt):
        verify(part(wing, EXACT, INTERRUPTED), lab)
    path = wing.parts / "toy.py"
    path.write_text(path.read_text() + "\n# other code\n")
    evidence.source_hash.cache_clear()
    verify(registry.get(SOCKET, "toy"), lab)
    assert log(wing) == ["is_one", "waits", "is_one", "waits"]


@pytest.mark.parametrize("torn", ["", '{"format": 1', "[]"])
def test_a_torn_unfinished_file_is_no_obstacle(wing: Wing, lab: Lab, torn: str) -> None:
    toy = part(wing, EXACT, INTERRUPTED)
    with pytest.raises(KeyboardInterrupt):
        verify(toy, lab)
    (left,) = (wing.evidence / SOCKET).glob(".*")
    left.write_text(torn)
    assert verify(toy, lab).written is not None
    assert log(wing) == ["is_one", "waits", "is_one", "waits"]


def test_a_crashed_claim_is_tried_again_when_the_run_goes_on(wing: Wing, lab: Lab) -> None:
    toy = part(wing, CRASH, INTERRUPTED)
    with pytest.raises(KeyboardInterrupt):
        verify(toy, lab)
    verify(toy, lab)
    assert log(wing) == ["falls", "waits", "falls", "waits"]


def test_some_kinds_alone_are_not_written(wing: Wing, lab: Lab) -> None:
    toy = part(wing, EXACT, EFFECT, CRASH)
    done = verify(toy, lab, kinds=("exact",))
    assert done.written is None and evidence.read(toy) is None
    assert [e.id for e in done.evidence.claims] == ["is_one"] and log(wing) == ["is_one"]


def test_a_part_without_claims_writes_nothing(wing: Wing, lab: Lab) -> None:
    done = verify(part(wing), lab)
    assert done.written is None and done.evidence.claims == []


def test_evidence_names_the_models_that_were_used(wing: Wing, lab: Lab) -> None:
    toy = part(
        wing,
        "\n\n@claim('looks', kind='effect')\ndef looks(lab):\n    lab.used.add('object-expert')\n    return Finding(checks={})\n",
    )
    done = verify(toy, lab)
    assert done.evidence.claims[0].verdict == "not applicable"
    wanted = evidence.now(toy, "models/object-expert")
    assert done.evidence.hashes.get("models/object-expert") == wanted


def test_a_claim_costs_what_it_costs_without_a_cache(wing: Wing, lab: Lab) -> None:
    toy = part(wing, "\n\n@claim('kept', kind='effect')\ndef kept(lab):\n    lab.saved += 120.0\n    return Finding(checks={})\n")
    assert run(claims_of(toy)[0], lab).seconds >= 120
