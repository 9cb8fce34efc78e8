"""The benchmark of hosts runs, and refuses to compare different tokens. Nothing here is about time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.hosts.tiny import build

from tessera.bench import hosts
from tessera.cli import main
from tessera.errors import TesseraError
from tessera.generation import loop
from tessera.models import reference

SMALL = [shape for shape in hosts.SHAPES if not shape.text]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tessera.bench.generate.SHAPES", SMALL[:1])
    tiny = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 200}
    monkeypatch.setattr(hosts, "_LARGE", tiny)


def test_every_kind_of_host_is_there() -> None:
    assert {shape.family for shape in SMALL} == {shape.family for shape in hosts.SHAPES if shape.text}
    assert len([shape for shape in SMALL if shape.target == 2.0]) == 3


@pytest.mark.parametrize("shape", SMALL, ids=lambda shape: shape.family)
def test_a_host(shape: hosts.HostShape) -> None:
    found = hosts.host_case(shape, 3, 1)
    assert (found.why_slow is None) == (shape.family != "gemma3")
    assert found.reached == (found.ratio.median >= shape.target)


def test_questions_about_one_image() -> None:
    found = hosts.questions_case(1)
    assert found.questions == 8
    assert found.reached == (found.ratio.median >= 3)


def test_different_tokens_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    right = loop.decode_inputs

    def wrong(*args: Any, **options: Any) -> Any:
        return right(*args, **options) + 1

    monkeypatch.setattr(loop, "decode_inputs", wrong)
    with pytest.raises(TesseraError, match=r"the tokens of llava .* differ"):
        hosts.host_case(SMALL[0], 3, 1)


def test_the_command_prints_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, processor = build()
    folder = str(reference.save(model, processor, tmp_path / "tiny", dtype=torch.float32))
    args = ["bench", "generate", "--model", folder, "--new-tokens", "2", "--rounds", "1"]
    assert main.run([*args, "--hosts", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [c["family"] for c in found["hosts"]] == ["llava"]
    assert found["questions"]["questions"] == 8
    assert main.run([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["hosts"], found["questions"]) == ([], None)
    assert main.run([*args, "--hosts"]) == 0
    assert "8 questions about one image of 576 tokens" in capsys.readouterr().out
