"""`tessera catalog`, `tessera list`, `tessera show`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.lab.toys import COST, EFFECT, EXACT, Wing, wing_in

from tessera.cli.main import run

VERDICTS = {"supported": 1, "holds": 2}
KEYS = {"n", "name", "title", "kind", "core", "socket", "part", "status", "verdicts"}


@pytest.fixture
def wing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Wing]:
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with wing_in(tmp_path, monkeypatch) as made:
        made.part("toy", EXACT, EFFECT, COST, catalog=244)
        assert run(["verify", "brain/toy", "--json"]) == 0
        made.part("spare", EFFECT)
        made.part("silent")
        capsys.readouterr()
        yield made


def test_the_catalogue_as_json_has_421_systems(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["catalog", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = found["systems"]
    assert [r["n"] for r in rows] == list(range(1, 422))
    assert all(KEYS <= r.keys() <= KEYS | {"more"} for r in rows)
    assert {r["status"] for r in rows} <= {"none", "no claims", "no evidence", "fresh", "stale"}
    mine = [part for r in rows for part in (r, *r.get("more", [])) if part["part"] == "toy"]
    assert [(p["socket"], p["status"], p["verdicts"]) for p in mine] == [("brain", "fresh", VERDICTS)]


def test_the_catalogue_as_a_table_and_as_pages(wing: Wing, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["catalog"]) == 0
    out = capsys.readouterr().out
    assert "FoPru" in out and "brain/toy" in out and "421 published entries" in out and "1 supported, 2 hold" in out
    assert run(["catalog", "--html", str(tmp_path / "site")]) == 0
    captured = capsys.readouterr()
    assert captured.out == "" and "index.html" in captured.err
    assert (tmp_path / "site/index.html").is_file()


def test_parts_are_listed_by_socket(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "brain"]) == 0
    out = capsys.readouterr().out
    assert "toy" in out and "spare" in out and "244" in out and "fresh" in out and "connectors" not in out
    assert run(["list", "brain", "--json"]) == 0
    silent, spare, toy = json.loads(capsys.readouterr().out)["parts"]
    assert (silent["part"], silent["status"], silent["verdicts"]) == ("silent", "no claims", {})
    assert (spare["part"], spare["n"], spare["status"], spare["verdicts"]) == ("spare", None, "no evidence", {"not run": 1})
    assert (toy["part"], toy["n"], toy["system"], toy["verdicts"]) == ("toy", 244, "FoPru", VERDICTS)
    assert run(["list"]) == 0
    assert "connectors" in capsys.readouterr().out


def test_a_part_is_shown_with_its_numbers(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("toy", "244"):
        assert run(["show", name]) == 0
        out = capsys.readouterr().out
        for piece in (
            "brain/toy", "keep", "0.5", "One [bold] is one.", "✓ equal", "difference 0.3333", "holds",
            "treatment 0.", "treatment is above baseline", "60 images", "supported",
            "✓ ratio is at least 2 (table 3)", "ratio 2.5",
        ):  # fmt: skip
            assert piece in out, piece
        assert "`tessera verify toy` runs what has no fresh result" in out
    assert run(["show", "spare"]) == 0
    out = capsys.readouterr().out
    assert "not run" in out and "No results yet: `tessera verify spare`" in out
    assert run(["show", "silent"]) == 0
    assert "verify" not in capsys.readouterr().out


def test_what_is_stale_is_shown_with_the_reason(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    wing.part("toy", EXACT, EFFECT.replace("0.5", "0.6"), COST, catalog=244)
    assert run(["show", "toy"]) == 0
    assert "helps: the experiment is another one." in capsys.readouterr().out
    assert run(["show", "toy", "--json"]) == 0
    (part,) = json.loads(capsys.readouterr().out)["parts"]
    assert part["status"] == "stale"
    assert {c["id"]: c["stale"] for c in part["claims"]} == {
        "is_one": [],
        "helps": ["the experiment is another one"],
        "saves": [],
    }


def test_a_long_description_is_not_cut_when_it_is_piped(wing: Wing, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert run(["show", "toy"]) == 0
    assert "arXiv:3101.01234. It looks first." in capsys.readouterr().out


def test_what_is_shown_as_json(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "toy", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["system"]["n"] == 244
    (part,) = found["parts"]
    assert part["claims"][0]["measured"] == {"difference": 0.333333} and part["behaviour"] == 1 and part["problem"] is None
    assert [(c["id"], c["kind"], c["verdict"]) for c in part["claims"]] == [
        ("is_one", "exact", "holds"),
        ("helps", "effect", "supported"),
        ("saves", "cost", "holds"),
    ]
    assert part["options"][0] == {"name": "keep", "type": "float", "default": "0.5"}
    assert run(["show", "7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parts"] == []


def test_systems_that_are_not_built_are_shown(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "VIT-survey"]) == 0
    assert "A survey" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["show", "toyy"], "Did you mean 'toy'"),
        (["show", "brain/nothing"], "there is no part or system"),
        (["list", "brian"], "Did you mean 'brain'"),
    ],
)
def test_unknown_names_are_answered_with_the_nearest(wing: Wing, capsys, args: list[str], says: str) -> None:
    assert run(args) == 2
    assert says in capsys.readouterr().err
    assert run([*args, "--json"]) == 2
    assert says in json.loads(capsys.readouterr().err)["error"]["message"]


def test_damaged_evidence_is_told_and_the_rest_is_listed(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    (wing.evidence / "toy.json").write_text("{")
    assert run(["list", "brain", "--json"]) == 0
    captured = capsys.readouterr()
    assert "toy.json cannot be read" in captured.err
    found = json.loads(captured.out)
    assert [p["part"] for p in found["parts"]] == ["silent", "spare", "toy"] and len(found["problems"]) == 1
    assert run(["show", "toy"]) == 0
    assert "cannot be read" in capsys.readouterr().err


def test_an_empty_socket_is_no_mistake(wing: Wing, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("toy", "spare", "silent"):
        (wing.parts / f"{name}.py").unlink()
    assert run(["list", "brain"]) == 0
    assert "no part fills" in capsys.readouterr().err


@pytest.mark.parametrize("line", [["list"], ["list", "tokens", "--json"], ["show", "connectors/mlp"], ["catalog", "--json"]])
def test_listing_and_showing_import_no_torch(line: list[str], subprocess_env: dict[str, str]) -> None:
    code = (
        "import sys; from tessera.cli.main import run\n"
        f"assert run({line!r}) == 0\n"
        "heavy = {'torch', 'transformers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=subprocess_env, check=False)
    assert done.returncode == 0, done.stderr
