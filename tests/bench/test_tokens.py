"""The benchmark of token reduction runs and agrees with itself. Nothing here is about time."""

from __future__ import annotations

import json

import pytest

from tessera.bench import tokens
from tessera.cli import main

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokens.Shape

    def shape(**settings: int) -> tokens.Shape:
        return whole(**settings, patches=6, tower_layers=2, tower_width=64, text_tokens=12)

    monkeypatch.setattr(tokens, "Shape", shape)


@pytest.mark.usefixtures("small")
def test_tokens_prints_promises_and_what_came_of_them(capsys: Captured) -> None:
    args = ["bench", "tokens", "--rounds", "2", "--layers", "8", "--width", "64"]
    assert main.run([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["visual_tokens"] == 36
    assert [case["part"] for case in found["cases"]] == ["pyramiddrop", "fopru", "aim"]
    pyramid, fopru, aim = (case["tokens"] for case in found["cases"])
    assert pyramid == [48, 48, 30, 30, 21, 21, 16, 16]
    assert fopru == [21] * 8
    assert aim == [21] * 5 + [12 + 4, 12, 12]
    for case in found["cases"]:
        assert case["promised"] > 1
        assert case["promised"] == pytest.approx(found["gflops"] / case["gflops"], rel=0.3)
        assert case["measured"]["low"] <= case["measured"]["median"] <= case["measured"]["high"]
        assert case["share"] == pytest.approx(case["measured"]["median"] / case["promised"], abs=0.005)
    assert found["reached"] == all(case["reached"] for case in (*found["cases"], *found["idle"]))
    assert main.run(args) == 0
    assert "pyramiddrop" in capsys.readouterr().out


def test_mistakes_are_sentences(capsys: Captured) -> None:
    assert main.run(["bench", "tokens", "--width", "100"]) == 2
    assert "--width is a multiple of 64, not 100" in capsys.readouterr().err
