"""`tessera verify`: names, options, what it prints, its exit codes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.lab.toys import CALLS, COST, CRASH, EFFECT, EXACT, INTERRUPTED, SOCKET, WRONG, ToyProtocol, Wing, wing_in

from tessera import registry
from tessera.cli.main import run

FLAT = EFFECT.replace("0.5", "0.8").replace('"helps"', '"flat"')
VOID = EFFECT.replace("0.2", "0.8").replace('"helps"', '"void"')


@pytest.fixture
def wing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wing]:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "SOCKETS", (SOCKET,))
    with wing_in(tmp_path, monkeypatch) as made:
        yield made


def said(capsys: pytest.CaptureFixture[str], *args: str, code: int = 0) -> Any:
    """What the command prints with `--json`."""
    capsys.readouterr()
    assert run(["verify", *args, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def verdicts(found: Any) -> dict[str, dict[str, str]]:
    return {part["part"]: {c["id"]: c["verdict"] for c in part["claims"]} for part in found["parts"]}


def ran(found: Any) -> dict[str, list[str]]:
    return {part["part"]: [c["id"] for c in part["claims"] if c["ran"]] for part in found["parts"]}


def changed(wing: Wing, name: str, old: str, new: str) -> None:
    path = wing.parts / f"{name}.py"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    wing.changed()


# Running


def test_one_part_is_verified_and_shown(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    wing.part("toy", EXACT, EFFECT, COST)
    assert run(["verify", "toy"]) == 0
    captured = capsys.readouterr()
    for piece in (
        "One [bold] is one. (exact)",
        "difference 0.3333",
        "It helps. (effect)",
        "treatment is above baseline",
        "60 images",
        "supported",
        "It saves half. (cost)",
        "ratio 2 (1.9 to 2.2)",
        "effect: 1 supported",
        "exact: 1 holds",
        "cost: 1 holds",
    ):
        assert piece in captured.out, piece
    lines = captured.err.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [["brain/toy", name] for name in ("is_one", "helps", "saves")]
    assert "holds, 0.0 s; 2 left, about 1 min" in lines[0] and "0 left, about 0 min" in lines[2]
    assert (wing.evidence / "toy.json").is_file()


def test_json_is_one_value(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    wing.part("toy", EXACT, EFFECT)
    found = said(capsys, "brain/toy")
    assert found.keys() == {"parts", "verdicts", "broken"} and found["broken"] == []
    assert found["verdicts"] == {"effect": {"supported": 1}, "exact": {"holds": 1}, "cost": {}}
    (part,) = found["parts"]
    assert (part["socket"], part["part"]) == ("brain", "toy")
    exact, effect = part["claims"]
    assert exact["checks"] == {"equal": True} and exact["ran"] is True
    assert {"id", "kind", "promise", "verdict", "primary", "arms", "units", "seconds", "depends", "digest"} <= effect.keys()
    assert effect["primary"]["low"] <= effect["primary"]["value"] <= effect["primary"]["high"]


def test_only_what_is_not_fresh_runs(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    wing.part("toy", EXACT, EFFECT)
    wing.part("other", EXACT)
    wing.part("silent")
    assert ran(said(capsys, "toy")) == {"toy": ["is_one", "helps"]}
    found = said(capsys, "--all")
    assert ran(found) == {"other": ["is_one"], "toy": []}
    assert verdicts(found)["toy"] == {"is_one": "holds", "helps": "supported"}, "what is fresh is shown too"
    changed(wing, "toy", "2 * value", "[2 * value][0]")
    assert run(["verify", "--all"]) == 0
    assert "nothing to run: all evidence is fresh" in capsys.readouterr().err
    changed(wing, "toy", "[2 * value][0]", "3 * value")
    assert ran(said(capsys, "--all")) == {"other": [], "toy": ["is_one", "helps"]}
    assert ran(said(capsys, "other", "--again")) == {"other": ["is_one"]}
    assert run(["verify", "silent"]) == 0
    assert "none of these parts has claims" in capsys.readouterr().err


def test_a_crash_is_tried_again(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    wing.part("toy", CRASH, EXACT)
    assert run(["verify", "toy"]) == 1
    out = capsys.readouterr().out
    assert "crashed (ValueError: no ground (toy.py" in out and "exact: 1 holds, 1 crashed" in out
    assert ran(said(capsys, "toy", code=1)) == {"toy": ["falls"]}


@pytest.mark.parametrize(
    ("claim", "code", "verdict"),
    [
        (EXACT, 0, "holds"),
        (WRONG, 1, "fails (not: equal)"),
        (COST.replace("Paper(2.0", "Paper(3.0"), 1, "fails (not: ratio is at least 3 (table 3))"),
        (EFFECT.replace("0.8", "0.4"), 0, "contradicted"),
        (FLAT, 0, "inconclusive (would have shown 0)"),
        (VOID, 0, "invalid (not shown: control is below treatment)"),
    ],
)
def test_exit_codes(wing: Wing, capsys: pytest.CaptureFixture[str], claim: str, code: int, verdict: str) -> None:
    """Exact claims and costs must hold and nothing may crash; an effect that does not show is a result."""
    wing.part("toy", claim)
    assert run(["verify", "toy"]) == code
    assert verdict in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_fast_runs_exact_claims_and_writes_nothing(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    wing.part("toy", EXACT, EFFECT, COST)
    wing.part("other", EFFECT)
    assert ran(said(capsys, "--all", "--fast")) == {"toy": ["is_one"]}
    assert not wing.evidence.exists() and not CALLS
    wing.part("other", WRONG)
    assert verdicts(said(capsys, "--all", "--fast", code=1))["other"] == {"two_is_one": "fails"}


def test_ctrl_c_keeps_finished_claims(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    wing.part("toy", EXACT, INTERRUPTED)
    assert run(["verify", "toy"]) == 130
    assert "interrupted" in capsys.readouterr().err
    assert ran(said(capsys, "toy")) == {"toy": ["waits"]}
    assert wing.ran() == ["is_one", "waits", "waits"]


def test_what_cannot_be_run_does_not_keep_the_others(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    wing.part("toy", EFFECT)
    wing.part("other", EXACT)
    assert run(["verify", "--all"]) == 0
    wing.part("toy", EFFECT.replace("0.5", "0.6"))  # changed after its result was seen, without a word on why
    wing.part("other", EXACT.replace("is_one", "is_two"))
    wing.part("stuck", EXACT, text="1 / 0")
    found = said(capsys, "--all", code=1)
    assert verdicts(found) == {"other": {"is_two": "holds"}, "toy": {"helps": "crashed"}}
    (toy,) = (part for part in found["parts"] if part["part"] == "toy")
    assert "amended" in toy["claims"][0]["note"]
    assert len(found["broken"]) == 1 and "brain/stuck cannot be read: ZeroDivisionError" in found["broken"][0]
    assert json.loads((wing.evidence / "toy.json").read_text())["claims"][0]["verdict"] == "supported", "nothing is overwritten"


def test_claims_that_cannot_be_read_do_not_keep_the_others(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    wing.part("toy", EXACT)
    wing.part("broken", "import there_is_no_such_module\n")
    for option in ("--fast", "--check"):
        capsys.readouterr()
        assert run(["verify", "--all", option, "--json"]) == 1
        captured = capsys.readouterr()
        found = json.loads(captured.out)
        assert [p["part"] for p in found["parts"]] == ["toy"] and "brain/broken cannot be read" in found["broken"][0]
        assert "there_is_no_such_module" in captured.err


# Looking


def test_check_names_what_is_not_fresh_and_why(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    wing.part("toy", EXACT, EFFECT)
    wing.part("other", EXACT)
    assert run(["verify", "toy"]) == 0
    rows = {row["part"]: row for row in said(capsys, "--check")["parts"]}
    assert (rows["toy"]["status"], rows["other"]["status"]) == ("fresh", "no evidence")
    assert rows["other"]["not run"] == ["is_one"] and rows["toy"]["stale"] == {}
    changed(wing, "toy", "2 * value", "-2 * value")
    rows = {row["part"]: row for row in said(capsys, "--check", "--all", code=1)["parts"]}
    why = ["part brain/toy behaves otherwise (1 then, changed now)"]
    assert rows["toy"]["status"] == "stale" and rows["toy"]["stale"] == {"is_one": why, "helps": why}
    assert wing.ran() == ["is_one"], "nothing is run"
    assert run(["verify", "--check"]) == 1
    out = capsys.readouterr().out
    assert "behaves otherwise" in out and "never run" in out and "0 of 2 parts with claims have fresh evidence." in out


def test_a_changed_protocol_is_named(wing: Wing, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    wing.part("toy", EXACT, EFFECT)
    assert run(["verify", "toy"]) == 0
    monkeypatch.setattr(ToyProtocol, "behaves", 5.0)
    (wing.package / "a_change").touch()
    wing.changed()
    (row,) = said(capsys, "toy", "--check", code=1)["parts"]
    assert row["stale"] == {"helps": ["protocol toy behaves otherwise (1 then, changed now)"]}


def test_damaged_evidence_is_said_and_measured_again(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    wing.part("toy", EXACT)
    wing.evidence.mkdir(parents=True)
    (wing.evidence / "toy.json").write_text("{ torn")
    assert run(["verify", "--check"]) == 1
    captured = capsys.readouterr()
    assert "toy.json cannot be read" in captured.err and "damaged" in captured.out
    assert run(["verify", "--all"]) == 0
    assert run(["verify", "--check"]) == 0
    assert "1 of 1 parts" in capsys.readouterr().out


def test_kept_outcomes_are_judged_again(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    wing.part("toy", EXACT, EFFECT)
    wing.part("other", EFFECT)
    assert run(["verify", "toy"]) == 0
    capsys.readouterr()
    assert run(["verify", "--all", "--rejudge", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert ran(found) == {"toy": ["helps"], "other": []}
    assert verdicts(found) == {"toy": {"is_one": "holds", "helps": "supported"}, "other": {"helps": "not run"}}
    assert "judged anew: 1 experiments" in captured.err and len(CALLS) == 3


# Samples


def test_a_sample_is_drawn_by_its_key_and_compared(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("toy", "other"):
        wing.part(name, EXACT, EFFECT, COST)
    assert run(["verify", "--all"]) == 0
    written = {path: path.read_bytes() for path in wing.evidence.iterdir()}
    found = said(capsys, "--sample", "abc")
    assert found["key"] == "abc" and sorted(c["part"] for c in found["claims"]) == ["other", "toy"]
    assert all(c["agrees"] and c["moved"] == 0.0 and c["now"]["kind"] == "effect" for c in found["claims"])
    assert len(CALLS) == 6, "measured anew (3 arms, which both parts share), with nothing kept from before"
    assert {path: path.read_bytes() for path in wing.evidence.iterdir()} == written


def cost(wing: Wing, name: str, seconds: float) -> None:
    """What the evidence says that its effect has cost."""
    plain = json.loads((wing.evidence / f"{name}.json").read_text())
    for claim in plain["claims"]:
        claim["seconds"] = seconds
    (wing.evidence / f"{name}.json").write_text(json.dumps(plain))


def test_a_sample_keeps_to_its_budget_and_takes_some_parts_first(wing: Wing) -> None:
    from tessera.lab.sample import draw

    names = ("a", "b", "c", "dear")
    for name in names:
        wing.part(name, EFFECT)
    assert run(["verify", "--all"]) == 0
    for name in names:
        cost(wing, name, 400.0 if name == "dear" else 90.0)
    pairs = [(SOCKET, name) for name in names]
    drawn = {key: [d.part for d in draw(pairs, key, 200.0)] for key in "0123456789"}
    assert all(len(found) == 2 and "dear" not in found for found in drawn.values())
    assert len({tuple(found) for found in drawn.values()}) > 1, "by the key"
    assert drawn["3"] == [d.part for d in draw(pairs[::-1], "3", 200.0)]
    assert [[d.part for d in draw(pairs, key, 400.0, ["brain/dear"])] for key in "012"] == [["dear"]] * 3


def test_a_verdict_that_is_not_the_evidences_fails_the_sample(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    wing.part("toy", EFFECT)
    assert run(["verify", "toy"]) == 0
    path = wing.evidence / "toy.json"
    path.write_text(path.read_text().replace('"supported"', '"contradicted"'))
    capsys.readouterr()
    assert run(["verify", "--sample", "abc"]) == 1
    captured = capsys.readouterr()
    assert "contradicted" in captured.out and "supported" in captured.out and "UNLIKE its evidence" in captured.err


def test_a_sample_takes_what_has_evidence_of_the_present_experiment(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    wing.part("toy", EFFECT)
    assert run(["verify", "--sample", "abc"]) == 0
    assert "nothing is measured anew" in capsys.readouterr().err
    assert run(["verify", "toy"]) == 0
    wing.part("toy", EFFECT.replace("0.5", "0.6"))
    assert said(capsys, "--sample", "abc")["claims"] == []


# Mistakes


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["verify"], "name a part"),
        (["verify", "toyy"], "Did you mean 'toy'?"),
        (["verify", "brain/toyy"], "Did you mean 'brain/toy'?"),
        (["verify", "tokens/toy"], "'toy' is no part of socket 'tokens', but of 'brain'."),
        (["verify", "toy", "--jobs", "0"], "--jobs"),
        (["verify", "--check", "--sample", "x"], "give one of them"),
        (["verify", "toy", "--sample", "x", "--fast"], "give one of them"),
        (["verify", "toy", "--rejudge", "--again"], "give one of them"),
        (["verify", "--sample", "x", "--budget", "0"], "--budget"),
    ],
)
def test_mistakes_are_answered_with_a_sentence(
    wing: Wing, capsys: pytest.CaptureFixture[str], args: list[str], says: str
) -> None:
    wing.part("toy", EXACT)
    assert run(args) == 2
    captured = capsys.readouterr()
    assert says in captured.err and "Traceback" not in captured.err and captured.out == ""
