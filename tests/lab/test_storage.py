"""The lab's cache folder: what goes, what stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tessera.lab.storage import tidy

KB = 1024


def training(folder: Path, name: str, *, finished: bool = True, age: float = 0.0) -> Path:
    """A training of 3 KB, of which its model is one; an unfinished one has no model yet."""
    run = folder / name
    for inner in ("model", "cache/some", "checkpoint"):
        (run / inner).mkdir(parents=True)
        (run / inner / ("model.safetensors" if finished or inner != "model" else "part")).write_bytes(bytes(KB))
    return aged(run, age)


def kept(path: Path, age: float = 0.0) -> Path:
    """A file of 1 KB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(KB))
    return aged(path, age)


def aged(entry: Path, age: float) -> Path:
    os.utime(entry, (time.time() - age, time.time() - age))
    return entry


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("shelf", ["", "compare"])
def test_a_finished_training_keeps_its_model_alone(tmp_path: Path, shelf: str) -> None:
    done, going = training(tmp_path / shelf, "done"), training(tmp_path / shelf, "going", finished=False)
    assert tidy(tmp_path) == 2 * KB
    assert [path.name for path in done.iterdir()] == ["model"]
    assert sorted(path.name for path in going.iterdir()) == ["cache", "checkpoint", "model"]
    assert tidy(tmp_path) == 0


def test_the_oldest_go_first_and_only_down_to_the_limit(tmp_path: Path) -> None:
    """Wherever they lie; a folder that holds entries does not go as one."""
    names = ("a.json", "outcomes/b.json", "compare/c.json", "outcomes/d.json", "e.json")
    for place, name in enumerate(names):
        kept(tmp_path / name, 500.0 - 50 * place)
    aged(tmp_path / "outcomes", 900.0)
    assert tidy(tmp_path, limit=2 * KB, young=100.0) == 3 * KB
    assert left(tmp_path) == ["e.json", "outcomes/d.json"]


def test_what_is_young_stays_whatever_it_takes(tmp_path: Path) -> None:
    training(tmp_path, "old", finished=False, age=500.0)
    training(tmp_path, "young", finished=False, age=10.0)
    kept(tmp_path / "outcomes" / "young.json", age=10.0)
    assert tidy(tmp_path, limit=0, young=100.0) == 3 * KB
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outcomes", "young"]


def test_fingerprints_of_the_newest_source_stay_and_older_ones_go(tmp_path: Path) -> None:
    for name, age in (("first", 900.0), ("second", 500.0), ("third", 400.0)):
        kept(tmp_path / "behaviours" / name / "core.world.json")
        aged(tmp_path / "behaviours" / name, age)
    assert tidy(tmp_path, young=450.0) == 2 * KB
    assert left(tmp_path) == ["behaviours/third/core.world.json"]
    assert tidy(tmp_path, young=100.0) == 0, "the newest stays, old as it is"


def test_no_folder_is_no_error(tmp_path: Path) -> None:
    assert tidy(tmp_path / "missing") == 0
