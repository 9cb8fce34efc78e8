"""`tessera verify`: names, options, what it prints, its exit codes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.catalog_wing import SOCKET, Wing, wing_in
from tests.lab.claiming import CRASH, EFFECT, EXACT, HEAD, INTERRUPTED, WRONG

from tessera import registry
from tessera.cli.main import run
from tessera.lab import evidence


@pytest.fixture
def wing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wing]:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "SOCKETS", (SOCKET,))
    with wing_in(tmp_path, monkeypatch) as made:
        yield made


def add(wing: Wing, name: str, *claims: str) -> None:
    wing.part(name, text=HEAD + "".join(claims))


def test_one_part_is_verified_and_shown(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    add(wing, "toy", EXACT, EFFECT)
    assert run(["verify", "toy"]) == 0
    captured = capsys.readouterr()
    for piece in (
        "one [bold] is one (exact)",
        "it helps (effect)",
        "accuracy 0.3333 ± 0.01",
        "accuracy 0.1 ± 0.02",
        "partly (not: much better)",
        "1 holds, 1 partly",
        "written: ",
    ):
        assert piece in captured.out, piece
    assert "toy: one [bold] is one: holds, 0.0 s" in captured.err
    assert (wing.evidence / SOCKET / "toy.json").is_file()


def test_json_is_one_value(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    add(wing, "toy", EXACT, EFFECT)
    assert run(["verify", "brain/toy", "--json"]) == 0
    (part,) = json.loads(capsys.readouterr().out)["parts"]
    assert [c["verdict"] for c in part["claims"]] == ["holds", "partly"]
    assert part["written"].endswith("toy.json") and part["hashes"]["part"]


def test_fast_runs_exact_claims_and_writes_nothing(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    add(wing, "toy", EXACT, EFFECT)
    add(wing, "other", EFFECT)
    add(wing, "silent")
    assert run(["verify", "--all", "--fast", "--json"]) == 0
    found = {part["part"]: [c["id"] for c in part["claims"]] for part in json.loads(capsys.readouterr().out)["parts"]}
    assert found == {"toy": ["is_one"], "other": []}
    assert not wing.evidence.exists()


@pytest.mark.parametrize(("claims", "code"), [((WRONG,), 1), ((CRASH, EXACT), 1), ((EFFECT,), 0)])
def test_exit_codes(wing: Wing, capsys: pytest.CaptureFixture[str], claims: tuple[str, ...], code: int) -> None:
    """An exact claim must hold and nothing may crash; an effect that does not show is a result."""
    add(wing, "toy", *claims)
    assert run(["verify", "toy"]) == code
    if CRASH in claims:
        out = capsys.readouterr().out
        assert "crashed: ValueError: no ground" in out and "1 crashed, 1 holds" in out


def test_ctrl_c_keeps_finished_claims(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    add(wing, "toy", EXACT, INTERRUPTED)
    assert run(["verify", "toy"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert run(["verify", "toy", "--json"]) == 0
    assert (wing.parts / "toy.log").read_text().split() == ["is_one", "waits", "waits"]


def test_stale_parts_alone(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    add(wing, "toy", EXACT)
    add(wing, "other", EXACT)
    add(wing, "weak", CRASH)
    assert run(["verify", "toy", "weak"]) == 1
    capsys.readouterr()
    assert run(["verify", "--stale", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["parts"]
    assert [p["part"] for p in found] == ["other", "weak"], "a crash is tried again"
    (wing.parts / "weak.py").unlink()
    registry._registered.pop((SOCKET, "weak"))
    assert run(["verify", "--stale"]) == 0
    assert "all evidence is fresh" in capsys.readouterr().err


def test_damaged_evidence_is_said_and_measured_again(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    add(wing, "toy", EXACT)
    path = evidence.path_of(registry.get(SOCKET, "toy"))
    path.parent.mkdir(parents=True)
    path.write_text("{ torn")
    assert run(["verify", "--check"]) == 1
    captured = capsys.readouterr()
    assert "toy.json cannot be read" in captured.err and "no evidence" in captured.out
    assert run(["verify", "--stale"]) == 0
    assert run(["verify", "--check"]) == 0
    assert "1 of 1 parts" in capsys.readouterr().out


def test_check_names_what_is_not_fresh_and_why(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    add(wing, "toy", EXACT)
    add(wing, "other", EXACT)
    assert run(["verify", "toy"]) == 0
    path = wing.parts / "toy.py"
    path.write_text(path.read_text() + "\n# changed\n")
    evidence.source_hash.cache_clear()
    capsys.readouterr()
    assert run(["verify", "--check", "--all", "--json"]) == 1
    rows = {row["part"]: (row["status"], row["changed"]) for row in json.loads(capsys.readouterr().out)["parts"]}
    assert rows == {"toy": ("stale", ["part"]), "other": ("no evidence", [])}
    assert (wing.parts / "toy.log").read_text().split() == ["is_one"], "nothing is run"


def test_a_sample_is_drawn_by_its_key_and_compared(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("toy", "other"):
        add(wing, name, EXACT, EFFECT)
    assert run(["verify", "--all"]) == 0
    capsys.readouterr()
    assert run(["verify", "--sample", "abc", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["key"] == "abc" and sorted(c["part"] for c in found["claims"]) == ["other", "toy"]
    assert all(c["agrees"] and c["apart"] == ["accuracy", 0.0] for c in found["claims"])
    assert all(c["now"]["kind"] == "effect" for c in found["claims"])


def test_a_verdict_that_is_not_the_evidences_fails_the_sample(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    add(wing, "toy", EFFECT)
    assert run(["verify", "toy"]) == 0
    path = evidence.path_of(registry.get(SOCKET, "toy"))
    path.write_text(path.read_text().replace('"partly"', '"holds"').replace("0.333333", "0.666666"))
    capsys.readouterr()
    assert run(["verify", "--sample", "abc"]) == 1
    captured = capsys.readouterr()
    assert "holds" in captured.out and "partly" in captured.out and "accuracy by 50 %" in captured.out
    assert "UNLIKE its evidence" in captured.err


def test_a_sample_without_evidence_is_empty(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    add(wing, "toy", EFFECT)
    assert run(["verify", "--sample", "abc"]) == 0
    assert "nothing is run anew" in capsys.readouterr().err


def test_a_part_that_cannot_be_imported_does_not_keep_the_others(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    add(wing, "toy", EXACT)
    (wing.parts / "broken.py").write_text("import there_is_no_such_module")
    assert run(["verify", "--all", "--fast", "--json"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [p["part"] for p in found["parts"]] == ["toy"] and "brain/broken cannot be imported" in found["broken"][0]
    assert "there_is_no_such_module" in captured.err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["verify"], "name a part"),
        (["verify", "toyy"], "Did you mean 'toy'?"),
        (["verify", "brain/toyy"], "Did you mean 'brain/toy'?"),
        (["verify", "tokens/toy"], "'toy' is no part of socket 'tokens', but of 'brain'."),
        (["verify", "toy", "--jobs", "0"], "--jobs"),
        (["verify", "--check", "--sample", "x"], "three different things"),
        (["verify", "toy", "--sample", "x", "--fast"], "three different things"),
        (["verify", "--sample", "x", "--budget", "0"], "--budget"),
    ],
)
def test_mistakes_are_answered_with_a_sentence(
    wing: Wing, capsys: pytest.CaptureFixture[str], args: list[str], says: str
) -> None:
    add(wing, "toy", EXACT)
    assert run(args) == 2
    captured = capsys.readouterr()
    assert says in captured.err and "Traceback" not in captured.err and captured.out == ""


def test_jobs_runs_parts_in_processes_of_their_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, subprocess_env: dict[str, str]
) -> None:
    """Made-up parts do not exist in another process: each one's death is told as a crash of its claims, and the others run."""
    for name, value in subprocess_env.items():
        monkeypatch.setitem(os.environ, name, value)
    from tessera.cli import verify

    class Dead:
        stdout, stderr, returncode = "", "first\nKilled", -9

    alive = '{"parts": [{"part": "m3", "claims": [{"verdict": "holds", "kind": "exact", "seconds": 1.0}]}]}'

    def fake(command: list[str], **_: object) -> object:
        if "tokens/m3" in command:
            return type("Alive", (), {"stdout": alive, "stderr": "", "returncode": 0})()
        return Dead()

    monkeypatch.setattr(verify.subprocess, "run", fake)
    assert run(["verify", "fopru", "m3", "--jobs", "2", "--fast", "--json"]) == 1
    dead, m3 = json.loads(capsys.readouterr().out)["parts"]
    assert m3["part"] == "m3" and dead["part"] == "fopru"
    assert {c["verdict"] for c in dead["claims"]} == {"crashed"} and {c["kind"] for c in dead["claims"]} == {"exact"}
    assert "code -9: Killed" in dead["claims"][0]["note"]


def test_a_part_without_evidence_is_named_and_no_mistake(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    add(wing, "toy", EXACT)
    assert run(["verify", "--check"]) == 0
    assert "no evidence" in capsys.readouterr().out
