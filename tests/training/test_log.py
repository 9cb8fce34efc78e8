from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tessera.errors import TesseraError
from tessera.training.log import Log, Reporter


def record(step: int, **changes: Any) -> dict[str, Any]:
    plain = dict(step=step, stage="align", loss=1.5, tokens=80, samples=8)
    return plain | dict(samples_per_second=4.0, tokens_per_second=1234.0) | changes


def report(terminal: bool, records: list[dict[str, Any]]) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=60)
    reporter = Reporter(steps=6, done=2, every=2, console=console)
    for values in records:
        reporter.step(values, seconds=2.0)
    reporter.say("a sentence [that] is longer than the sixty columns which this console has for its lines")
    reporter.close()
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_there_is_a_line_every_few_steps() -> None:
    lines = report(False, [record(3), record(4), record(5), record(6, loss=None, tokens=0)]).splitlines()
    assert lines[0] == "align 4/6  loss 1.5000  1,234 tokens/s  0:00:04 left"
    assert "loss    -" in lines[1] and "4 samples/s" in lines[1] and lines[1].endswith("0:00:00 left")
    assert lines[2].endswith("for its lines")


def test_a_terminal_gets_a_progress_bar() -> None:
    shown = report(True, [record(3), record(4)])
    assert "4/6" in shown and "1,234 tokens/s" in shown


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path / "log.jsonl", 0)

    class Full:
        def write(self, text: str) -> None:
            raise OSError(28, "No space left on device")

    log.close()
    monkeypatch.setattr(log, "_file", Full())
    with pytest.raises(TesseraError, match="disk is full"):
        log.write({"step": 1})
