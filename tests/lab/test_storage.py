"""The folder of kept runs: what goes, what stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

from tessera.lab.storage import tidy

KB = 1024


def training(folder: Path, name: str, *, finished: bool = True, age: float = 0.0) -> Path:
    """A run of 3 KB, of which its model is one."""
    run = folder / name
    for inner in ("model", "cache/some", "checkpoint"):
        (run / inner).mkdir(parents=True)
        (run / inner / "model.safetensors").write_bytes(bytes(KB))
    if finished:
        (run / "seconds.json").write_text("1.0")
    return aged(run, age)


def aged(entry: Path, age: float) -> Path:
    os.utime(entry, (time.time() - age, time.time() - age))
    return entry


def test_a_finished_run_keeps_its_model_alone(tmp_path: Path) -> None:
    done, going = training(tmp_path, "done"), training(tmp_path, "going", finished=False)
    assert tidy(tmp_path) == 2 * KB
    assert sorted(path.name for path in done.iterdir()) == ["model", "seconds.json"]
    assert sorted(path.name for path in going.iterdir()) == ["cache", "checkpoint", "model"]
    assert tidy(tmp_path) == 0


def test_the_oldest_go_first_and_only_down_to_the_limit(tmp_path: Path) -> None:
    for place, age in enumerate((500.0, 400.0, 300.0, 200.0)):
        result = tmp_path / f"{place}.json"
        result.write_bytes(bytes(KB))
        aged(result, age)
    assert tidy(tmp_path, limit=2 * KB, young=100.0) == 2 * KB
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.json", "3.json"]


def test_what_is_young_stays_whatever_it_takes(tmp_path: Path) -> None:
    training(tmp_path, "old", finished=False, age=500.0)
    training(tmp_path, "young", finished=False, age=10.0)
    assert tidy(tmp_path, limit=0, young=100.0) == 3 * KB
    assert [path.name for path in tmp_path.iterdir()] == ["young"]


def test_no_folder_is_no_error(tmp_path: Path) -> None:
    assert tidy(tmp_path / "missing") == 0
