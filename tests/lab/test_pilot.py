"""Claims as data end to end: found, run on tiny models, judged, written, fresh, stale, amended, judged again."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tessera.errors import TesseraError, UserError
from tessera.lab import behaviour, evidence, freshness, verify
from tessera.lab import claims as claims_module
from tessera.lab.experiment import Checked, Cost, Exact, Experiment, Paper, Plug, retains, worse
from tessera.lab.local_lab import LocalLab
from tessera.lab.protocols.answering import Answering
from tessera.lab.protocols.prefill import Prefill
from tessera.lab.protocols.table import protocols
from tessera.lab.protocols.tiny import tiny_model

TINY = Answering(types=("existence", "position"), world={"width": 64, "height": 64})


def experiment(**changes):
    values = dict(
        id="keeps",
        promise="Half of the tokens keeps it.",
        protocol=TINY,
        treatment=Plug("random", keep=(0.5,), repeats=2),
        baseline=Plug("random", keep=(1.0,)),
        control=Plug("random", keep=(0.1,)),
        primary=retains("baseline", Paper(0.5, "table 1")),
        valid_if=(worse("control", than="baseline"),),
        looks=(8, 16),
    )
    return Experiment(**{**values, **changes})


CLAIMS = [
    Exact(id="sure", promise="One is one.", run=lambda lab: Checked(checks={"1 = 1": True})),
    experiment(),
    Cost(
        id="cheap",
        promise="Half of the tokens saves.",
        protocol=Prefill(layers=2, width=64, patches=4, text=8, rounds=0),
        treatment=Plug("random", keep=(0.5,)),
        at_least={"flop ratio": Paper(1.1, "table 2")},
    ),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty place for evidence, and a part whose claims are `CLAIMS`."""
    monkeypatch.setattr(evidence, "PACKAGE", tmp_path)
    monkeypatch.setattr(evidence, "folder", lambda source=None: tmp_path / "evidence")
    with_claims(monkeypatch, CLAIMS)
    return tmp_path


def with_claims(monkeypatch, claims):
    for module in (claims_module, freshness, verify):
        monkeypatch.setattr(module, "claims_of", lambda socket, name: list(claims))


def lab_at(home: Path) -> LocalLab:
    lab = LocalLab(cache=home / "cache", threads=0)
    lab._loaded["nano"] = tiny_model()
    return lab


def stale(home: Path) -> dict[str, list[str]]:
    for kept in (home / "cache").glob("behaviours/*/part.*"):
        kept.unlink()  # kept by the hash of files, which a monkeypatch does not change
    return freshness.status("tokens", "random", evidence.read("tokens", "random"), lab_at(home))[1]


def test_claims_run_and_their_evidence_is_fresh(home: Path) -> None:
    entries = verify.verify("tokens", "random", CLAIMS, lab_at(home))
    assert [entry.verdict for entry in entries][::2] == ["holds", "holds"]
    assert entries[1].verdict in ("invalid", "inconclusive", "supported", "contradicted"), entries[1].note
    assert {arm.name for arm in entries[1].arms} == {"treatment", "baseline", "control"}
    again = evidence.read("tokens", "random")
    assert again is not None
    assert json.dumps([entry.plain() for entry in again.claims]) == json.dumps([entry.plain() for entry in entries])
    assert stale(home) == {}


def test_a_run_again_measures_nothing_and_says_the_same(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = verify.verify("tokens", "random", CLAIMS[1:2], lab_at(home))

    def never(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(Answering, "measure", never)
    second = verify.verify("tokens", "random", CLAIMS[1:2], lab_at(home))
    assert second[0].primary == first[0].primary
    [judged] = verify.rejudge("tokens", "random", lab_at(home))
    assert (judged.verdict, judged.primary) == (first[0].verdict, first[0].primary)


def test_what_behaves_otherwise_is_stale_and_a_rename_is_not(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify.verify("tokens", "random", CLAIMS, lab_at(home))
    from tessera.hosts import token_reduction
    from tessera.nn import reduction

    keep = reduction.keep_share
    monkeypatch.setattr(token_reduction, "keep_share", lambda *arguments: keep(*arguments))
    assert stale(home) == {}
    monkeypatch.setattr(token_reduction, "keep_share", lambda score, *rest: keep(-score, *rest))
    found = stale(home)
    assert found.keys() == {"sure", "keeps", "cheap"}
    assert all("part tokens/random behaves otherwise" in " ".join(why) for why in found.values())


def test_a_changed_experiment_is_stale_and_says_why_it_was_changed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [before] = verify.verify("tokens", "random", CLAIMS[1:2], lab_at(home))
    changed = experiment(primary=retains("baseline", Paper(0.4, "table 1")))
    with_claims(monkeypatch, [changed])
    assert "the experiment is another one" in stale(home)["keeps"]
    with pytest.raises(UserError, match="amended"):
        verify.verify("tokens", "random", [changed], lab_at(home))
    said = replace(changed, amended=("The paper's other table is about this model.",))
    with_claims(monkeypatch, [said])
    [entry] = verify.verify("tokens", "random", [said], lab_at(home))
    [former] = entry.history
    assert (former.digest, former.verdict, former.reason) == (before.digest, before.verdict, said.amended[0])
    assert stale(home) == {}


def test_a_crash_is_recorded_and_stale(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(lab):
        raise ValueError("no such thing")

    bad = Exact(id="sure", promise="One is one.", run=broken)
    with_claims(monkeypatch, [bad])
    [entry] = verify.verify("tokens", "random", [bad], lab_at(home))
    assert entry.verdict == "crashed"
    assert "no such thing" in entry.note
    assert "it crashed" in stale(home)["sure"]


def test_nothing_is_measured_with_what_has_no_fingerprint(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lab = lab_at(home)
    lab.behaviours["protocol answering"] = {"error": "no such world"}
    with pytest.raises(TesseraError, match="no such world"):
        verify.verify("tokens", "random", CLAIMS[1:2], lab)


def test_damaged_evidence_is_a_sentence(home: Path) -> None:
    path = home / "evidence" / "tokens" / "random.json"
    path.parent.mkdir(parents=True)
    for text in ("{", "[]", '{"format": 1}', '{"format": 2, "claims": [{"id": "x"}]}'):
        path.write_text(text)
        with pytest.raises(UserError, match="evidence in"):
            evidence.read("tokens", "random")


@pytest.mark.parametrize("name", sorted(protocols()))
def test_golden_runs_are_repeatable(name: str, tmp_path: Path) -> None:
    first, second = (protocols()[name].golden(LocalLab(cache=tmp_path / str(run), threads=0)) for run in range(2))
    assert first
    assert behaviour.differences(first, second) == []
