"""The benchmarks of generation run, agree with themselves, and refuse what they cannot measure. Nothing here is about time."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.hosts.tiny import build

from tessera.bench import ask, evaluate, generate
from tessera.cli import main
from tessera.cli.bench import BENCHMARKS
from tessera.errors import TesseraError
from tessera.generation.generate import Generator
from tessera.models import reference

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    model, processor = build()
    return str(reference.save(model, processor, tmp_path_factory.mktemp("models") / "tiny", dtype=torch.float32))


def test_generate_prints_both_batch_sizes(folder: str, capsys: Captured) -> None:
    assert main.run(["bench", "generate", "--model", folder, "--new-tokens", "3", "--rounds", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [c["batch"] for c in found["cases"]] == [1, 16]
    assert [c["tokens"] for c in found["cases"]] == [3, 48]
    for case in found["cases"]:
        for name in ("ratio", "with_images"):
            assert 0 < case[name]["low"] <= case[name]["median"] <= case[name]["high"]
    assert found["reached"] == all(c["ratio"]["median"] >= found["target"] for c in found["cases"])
    assert found["subject"]["model"] == folder
    assert main.run(["bench", "generate", "--model", folder, "--new-tokens", "1", "--rounds", "1"]) == 0
    assert "transformers" in capsys.readouterr().out


def test_generate_refuses_to_compare_different_tokens(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Generator, "answer_batch", lambda self, rows, new: [[type("A", (), {"tokens": (9,)})] for _ in rows])
    with pytest.raises(TesseraError, match="the tokens of row 0 of 2 differ"):
        generate.measure(folder, 2, 1, batches=(2,))


def test_eval_counts_questions(folder: str, capsys: Captured) -> None:
    args = ["bench", "eval", "--model", folder, "--images", "2", "--questions", "3", "--new-tokens", "2", "--rounds", "1"]
    assert main.run([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["shared_questions_per_second"] == pytest.approx(6 / found["shared_seconds"], rel=0.01)
    assert found["alone_questions_per_second"] == pytest.approx(6 / found["alone_seconds"], rel=0.01)
    assert found["reached"] == (found["ratio"]["median"] >= found["target"])
    assert main.run(args) == 0
    assert "questions share an image" in capsys.readouterr().out


def test_eval_refuses_to_compare_different_answers(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Generator.answer_batch
    monkeypatch.setattr(Generator, "answer_batch", lambda self, rows, new: answer(self, rows, new + len(rows[0][1])))
    with pytest.raises(TesseraError, match="sharing the image changed an answer"):
        evaluate.measure(folder, 1, 2, 1, 1)


def test_ask_compares_plugged_with_unplugged(folder: str, capsys: Captured) -> None:
    args = ["bench", "ask", "--model", folder, "--plug", "uniform", "--plug", "pyramiddrop", "--images", "1", "--questions", "2"]
    args += ["--new-tokens", "2", "--rounds", "1"]
    assert main.run([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(case["part"], case["reads_question"]) for case in found["parts"]] == [("uniform", False), ("pyramiddrop", True)]
    for case in found["parts"]:
        fair = ("alone",) if case["reads_question"] else ("alone", "shared")
        assert case["reached"] == all(case[name]["median"] <= found["target"] for name in fair)
    assert main.run(args) == 0
    assert "reads the question" in capsys.readouterr().out
    assert main.run([*args, "--plug", "unifrom"]) == 2
    assert "Did you mean 'uniform'?" in capsys.readouterr().err


def test_ask_refuses_to_compare_different_tokens(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = Generator.answer_batch
    monkeypatch.setattr(Generator, "answer_batch", lambda self, rows, new: answer(self, rows, new + 1))
    with pytest.raises(TesseraError, match="the tokens of 'own' differ"):
        ask.measure(folder, ["uniform"], 1, 2, 1, 1)


def test_every_benchmark_is_listed_and_loads(capsys: Captured) -> None:
    assert main.run(["bench", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in BENCHMARKS:
        assert f" {name} " in shown
        assert f"tessera bench {name}" in help_of(name, capsys)


QUICK = {
    "train": ["--questions", "2", "--per-image", "2", "--steps", "1", "--rounds", "1"],
    "tokens": ["--layers", "4", "--width", "64"],
    "serve": ["--requests", "10", "--at-once", "2"],
}
"""Options that make the way to the first measurement short; a benchmark goes without."""


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_ends_when_it_is_told_to(name: str, folder: str, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    """SIGTERM, which does what Ctrl-C does, at the second look at the clock, in the midst of what is measured."""
    looks: list[str] = []
    real = time.perf_counter

    def clock() -> float:
        where = sys._getframe(1).f_globals["__name__"]
        if where.startswith(("tessera.bench.", "tessera.measure.")):
            looks.append(where)
            if len(looks) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
        return real()

    options = [*QUICK.get(name, []), *(["--model", folder] if "--model" in help_of(name, capsys) else [])]
    missed: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: missed.append(number))
    try:
        with monkeypatch.context() as patched:
            patched.setattr(time, "perf_counter", clock)
            assert main.run(["bench", name, *options, "--json"]) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr()
    assert (missed, said.out, len(looks) >= 2) == ([], "", True)
    assert "interrupted" in said.err


def help_of(name: str, capsys: Captured) -> str:
    assert main.run(["bench", name, "--help"]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["generat"], "Did you mean 'generate'?"),
        (["generate", "--rounds", "0"], "--rounds"),
        (["eval", "--model", "nanno"], "'nano'"),
    ],
)
def test_mistakes_are_sentences(args: list[str], says: str, capsys: Captured) -> None:
    assert main.run(["bench", *args]) == 2
    assert says in capsys.readouterr().err


def test_other_kinds_of_models_are_refused(tmp_path: Path, capsys: Captured) -> None:
    from tessera.models.configuration import TesseraVisionConfig
    from tessera.models.image_processing import TesseraImageProcessor
    from tessera.models.vision import TesseraVisionModel

    encoder = {"kind": "conv_vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 1, "heads": 2}
    model = TesseraVisionModel(TesseraVisionConfig(encoder=encoder))
    path = reference.save(model, TesseraImageProcessor(16), tmp_path / "expert")
    assert main.run(["bench", "eval", "--model", str(path)]) == 2
    assert "this benchmark runs Tessera's composed models" in capsys.readouterr().err
