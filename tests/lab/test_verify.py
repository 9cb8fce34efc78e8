"""Claims are run one by one, and each result is kept at once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.toys import CALLS, COST, CRASH, EFFECT, EXACT, INTERRUPTED, SOCKET, WRONG, ToyProtocol, Wing, wing_in

from tessera.errors import TesseraError, UserError
from tessera.lab import evidence, freshness
from tessera.lab.claims import claims_of
from tessera.lab.evidence import Entry
from tessera.lab.experiment import Checked, Exact
from tessera.lab.verify import rejudge, run, verify


@pytest.fixture
def wing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wing]:
    with wing_in(tmp_path, monkeypatch) as made:
        yield made


def verified(wing: Wing, *claims: str) -> list[Entry]:
    """Results of the toy with these claims."""
    wing.part("toy", *claims)
    return verify(SOCKET, "toy", claims_of(SOCKET, "toy"), wing.lab())


def test_all_claims_run_and_are_written(wing: Wing) -> None:
    wing.part("toy", EXACT, EFFECT, COST)
    calls: list[tuple[str, str]] = []

    def on_claim(claim: object, entry: Entry | None) -> None:
        calls.append((claim.id, "begins" if entry is None else entry.verdict))  # type: ignore[attr-defined]

    entries = verify(SOCKET, "toy", claims_of(SOCKET, "toy"), wing.lab(), on_claim)
    said = [("is_one", "holds"), ("helps", "supported"), ("saves", "holds")]
    assert calls == [pair for name, verdict in said for pair in ((name, "begins"), (name, verdict))]
    exact, effect, cost = entries
    assert exact.measured == {"difference": 0.333333} and exact.checks == {"equal": True}
    assert effect.primary is not None and effect.primary.low > 0 and (effect.units, effect.looks) == (60, 1)
    assert [arm.name for arm in effect.arms] == ["treatment", "baseline", "control"]
    assert cost.checks == {"ratio is at least 2 (table 3)": True} and cost.measured == {"ratio": 2.5}
    assert [entry.depends for entry in entries] == [
        {"part brain/toy": "1"},
        {"part brain/toy": "1", "protocol toy": "1", "core judge": "1"},
        {"part brain/toy": "1", "protocol toy_cost": "1"},
    ]
    found = evidence.read(SOCKET, "toy")
    assert found is not None and [entry.plain() for entry in found.claims] == [_plain(entry) for entry in entries]
    assert [path.name for path in wing.evidence.iterdir()] == ["toy.json"]


def _plain(entry: Entry) -> dict[str, object]:
    """As it is after a file: lists are tuples nowhere in JSON."""
    return evidence._entry(json.loads(json.dumps(entry.plain()))).plain()


def test_a_crash_is_a_result_and_the_others_run(wing: Wing) -> None:
    crashed, sure = verified(wing, CRASH, EXACT)
    assert (crashed.verdict, sure.verdict) == ("crashed", "holds")
    assert crashed.note.startswith("ValueError: no ground (toy.py, line ") and not crashed.checks
    assert evidence.read(SOCKET, "toy").counts() == {"holds": 1, "crashed": 1}  # type: ignore[union-attr]


def test_what_does_not_hold_fails_and_nothing_checked_is_not_applicable(wing: Wing) -> None:
    assert [entry.verdict for entry in verified(wing, WRONG)] == ["fails"]
    nothing = Exact(id="nothing", promise="", run=lambda lab: Checked(checks={}))
    assert run(SOCKET, "toy", nothing, wing.lab()).verdict == "not applicable"


def test_an_interruption_keeps_what_was_finished(wing: Wing) -> None:
    with pytest.raises(KeyboardInterrupt):
        verified(wing, EXACT, EFFECT, INTERRUPTED)
    found = evidence.read(SOCKET, "toy")
    assert found is not None and [entry.id for entry in found.claims] == ["is_one", "helps"]
    assert freshness.status(SOCKET, "toy", found, wing.lab())[1] == {"waits": ["it was never run"]}


def test_an_experiment_goes_on_with_the_arm_at_which_it_was_interrupted(wing: Wing, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = EFFECT.replace("0.5", "0.79")  # takes both looks
    with monkeypatch.context() as patched:
        patched.setattr(ToyProtocol, "interrupted_after", 4)
        with pytest.raises(KeyboardInterrupt):
            verified(wing, wide)
    assert CALLS == [("toy", 0, 60), ("none", 0, 60), ("shuffled", 0, 60), ("toy", 60, 60)]
    [entry] = verified(wing, wide)
    assert CALLS[4:] == [("none", 60, 60), ("shuffled", 60, 60)]
    assert (entry.units, entry.looks) == (120, 2)


def test_nothing_is_measured_again_unless_it_behaves_otherwise(wing: Wing) -> None:
    verified(wing, EFFECT)
    verified(wing, EFFECT)
    assert len(CALLS) == 3
    uses = EFFECT.replace('Vary("toy"', 'Vary("toy", uses=("toy",)')
    verified(wing, uses, 'CLAIMS[-1] = __import__("dataclasses").replace(CLAIMS[-1], amended=("The toy is used.",))\n')
    assert [name for name, _, _ in CALLS[3:]] == ["toy"], "the other arms are the same"
    path = wing.parts / "toy.py"
    path.write_text(path.read_text().replace("2 * value", "3 * value"))
    wing.changed()
    verify(SOCKET, "toy", claims_of(SOCKET, "toy"), wing.lab())
    assert [name for name, _, _ in CALLS[4:]] == ["toy"]


@pytest.mark.parametrize("torn", ["", '{"depends"', "[]", "{}"])
def test_a_torn_kept_outcome_is_measured_again(wing: Wing, torn: str) -> None:
    verified(wing, EFFECT)
    for kept in wing.lab().cache.glob("*.json"):
        kept.write_text(torn)
    assert [entry.verdict for entry in verified(wing, EFFECT)] == ["supported"]
    assert len(CALLS) == 6


def test_a_claim_costs_what_it_costs_without_a_cache(wing: Wing) -> None:
    def saves(lab: object) -> Checked:
        lab.saved += 120.0  # type: ignore[attr-defined]
        return Checked(checks={})

    assert run(SOCKET, "toy", Exact(id="kept", promise="", run=saves), wing.lab()).seconds >= 120


def test_a_changed_experiment_says_why_or_is_not_run(wing: Wing) -> None:
    [before] = verified(wing, EFFECT)
    with pytest.raises(UserError, match="add a sentence that says why to `amended`"):
        verified(wing, EFFECT.replace("0.5", "0.6"))
    assert evidence.read(SOCKET, "toy").claims[0].digest == before.digest  # type: ignore[union-attr]


def test_without_a_fingerprint_nothing_is_run(wing: Wing) -> None:
    wing.part("toy", EFFECT)
    lab = wing.lab()
    lab.behaviours["protocol toy"] = {"error": "no such world"}
    with pytest.raises(TesseraError, match="no such world"):
        verify(SOCKET, "toy", claims_of(SOCKET, "toy"), lab)
    assert not CALLS and evidence.read(SOCKET, "toy") is None


def test_kept_outcomes_are_judged_again_without_measuring(wing: Wing) -> None:
    [_, before] = verified(wing, EXACT, EFFECT)
    [same] = rejudge(SOCKET, "toy", wing.lab())
    assert _plain(same) == _plain(before)
    (kept,) = (wing.lab().cache / "outcomes").iterdir()
    stored = json.loads(kept.read_text())
    arms = stored["arms"]
    arms["treatment"], arms["baseline"] = arms["baseline"], arms["treatment"]
    kept.write_text(json.dumps(stored))
    [turned] = rejudge(SOCKET, "toy", wing.lab())
    assert turned.verdict == "contradicted" and turned.depends == before.depends and turned.seconds == before.seconds
    assert len(CALLS) == 3, "nothing is measured"
    found = evidence.read(SOCKET, "toy")
    assert found is not None and [entry.verdict for entry in found.claims] == ["holds", "contradicted"]


def test_outcomes_of_another_experiment_are_not_judged(wing: Wing) -> None:
    verified(wing, EFFECT)
    wing.part("toy", EFFECT.replace("0.5", "0.6"))
    assert rejudge(SOCKET, "toy", wing.lab()) == []
