"""Atomic files and folders: whatever goes wrong, what stood there before is still there, and nothing else."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tessera import io
from tessera.errors import TesseraError


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_file_appears_whole_with_the_usual_permissions(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.txt"
    with io.atomic_write(path) as temporary:
        temporary.write_text("good")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "good"
    assert names(path.parent) == ["a.txt"]
    plain = tmp_path / "plain"
    plain.write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_failure_while_writing_leaves_the_old_file_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    io.write_text(path, "old")
    with pytest.raises(KeyError), io.atomic_write(path) as temporary:
        temporary.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_is_a_sentence_and_leaves_the_old_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "a.txt"
    io.write_text(path, "old")
    monkeypatch.setattr(os, step, full_disk)
    with pytest.raises(TesseraError, match=r"the disk is full: .*a\.txt could not be written.*MB free") as raised:
        io.write_text(path, "new")
    assert raised.value.exit_code == 1
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_disk_that_fills_up_while_a_file_is_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(TesseraError, match="the disk is full"), io.atomic_write(tmp_path / "a") as temporary:
        temporary.write_text("half")
        full_disk()
    assert names(tmp_path) == []


def test_other_errors_of_the_system_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), io.atomic_write(tmp_path / "a"):
        (tmp_path / "missing").read_text()
    assert names(tmp_path) == []


def test_a_folder_takes_the_place_of_another(tmp_path: Path) -> None:
    path = tmp_path / "model"
    for content in ("first", "second"):
        with io.atomic_folder(path) as temporary:
            (temporary / f"{content}.txt").write_text(content)
    assert names(path) == ["second.txt"]
    assert names(tmp_path) == ["model"]


def test_a_failure_while_filling_a_folder_leaves_the_old_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "model"
    with io.atomic_folder(path) as temporary:
        (temporary / "weights").write_text("good")
    with pytest.raises(TesseraError, match="the disk is full"), io.atomic_folder(path) as temporary:
        (temporary / "weights").write_text("half")
        full_disk()
    assert (path / "weights").read_text() == "good"
    assert names(tmp_path) == ["model"]


def test_a_folder_is_put_back_when_the_exchange_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model"
    with io.atomic_folder(path) as temporary:
        (temporary / "weights").write_text("good")
    replace, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == 2:  # the old folder is aside, the new one not yet in its place
            full_disk()
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(TesseraError, match="the disk is full"), io.atomic_folder(path) as temporary:
        (temporary / "weights").write_text("new")
    assert len(calls) == 3
    assert (path / "weights").read_text() == "good"
    assert names(tmp_path) == ["model"]


KILLED = """
import os, signal, sys
from tessera import io
with getattr(io, sys.argv[1])(sys.argv[2]) as temporary:
    target = temporary / "weights" if temporary.is_dir() else temporary
    target.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("way", ["atomic_write", "atomic_folder"])
def test_a_kill_while_writing_leaves_the_old_one_alone(tmp_path: Path, way: str, subprocess_env: dict[str, str]) -> None:
    path = tmp_path / "model"
    with getattr(io, way)(path) as temporary:
        (temporary / "weights" if temporary.is_dir() else temporary).write_text("good")
    done = subprocess.run([sys.executable, "-c", KILLED, way, str(path)], env=subprocess_env, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (path / "weights" if path.is_dir() else path).read_text() == "good"


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (lambda path: io.write_text(path, "größer\n"), "größer\n"),
        (
            lambda path: io.write_json(path, {"ä": [1, None]}),
            json.dumps({"ä": [1, None]}, indent=2, ensure_ascii=False) + "\n",
        ),
    ],
    ids=["text", "json"],
)
def test_text_and_json_are_utf8(tmp_path: Path, write: Callable[[Path], None], expected: str) -> None:
    write(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == expected.encode()
