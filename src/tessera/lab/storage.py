"""The lab's cache folder: where it is, what lies in it, and how it is kept small.

    <hash>.json, <hash>/          outcomes of arms, derived models (`Lab.kept`, `Lab.folder`)
    outcomes/<claim>.json         what `tessera verify --rejudge` judges again
    behaviours/<source hash>/     fingerprints of one state of this package
    compare/<hash>.json, <hash>/  answers and trainings of `tessera compare`

A finished training needs its model alone; its checkpoint and the features of its frozen towers, most of its bytes, go. Of
fingerprints those of the newest source stay. Of what is left the oldest goes while there is more than a limit; nothing of the
last day, which another process may be at.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LIMIT = 8 << 30
"""Bytes that stay when nothing is young."""
YOUNG = 24 * 3600.0
"""Seconds for which whatever was made stays."""
_ONLY_WHILE_TRAINING = ("cache", "checkpoint")
_SHELVES = ("behaviours", "outcomes", "compare")
"""Folders that hold entries, and are none themselves."""


def cache_folder() -> Path:
    """Where results are kept: the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "tessera" / "lab"


def place(folder: Path, key: Any) -> Path:
    """Where in a cache folder something of plain data `key` is kept, as a folder or, with a suffix, as a file."""
    return folder / hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:24]


def read(path: Path, fields: Iterable[str]) -> dict[str, Any] | None:
    """A kept JSON object; None where there is none, it cannot be read, or it lacks a field."""
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and set(fields) <= found.keys() else None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds a lock file, for which other processes wait; it ends with the process whatever happens."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def tidy(folder: Path, limit: int = LIMIT, young: float = YOUNG) -> int:
    """Tidies a `cache_folder()`; gives the bytes that it freed. A folder that is not there, or a file that somebody else
    removes at the same time, is no error."""
    if not folder.is_dir():
        return 0
    now = time.time()
    freed = sum(_removed(old) for old in _aged(folder / "behaviours")[:-1] if now - _made(old) >= young)
    for run in _entries(folder):
        if (run / "model" / "model.safetensors").is_file():
            freed += sum(_removed(run / name) for name in _ONLY_WHILE_TRAINING)
    kept = sorted(_entries(folder), key=_made)
    sizes = [_bytes(entry) for entry in kept]
    total = sum(sizes)
    for entry, size in zip(kept, sizes, strict=True):
        if total <= limit or now - _made(entry) < young:
            break
        freed += _removed(entry)
        total -= size
    return freed


def _entries(folder: Path) -> list[Path]:
    """What is kept or goes as a whole."""
    found = [entry for entry in folder.iterdir() if entry.name not in _SHELVES]
    return found + [entry for shelf in _SHELVES for entry in _aged(folder / shelf)]


def _aged(shelf: Path) -> list[Path]:
    """The entries of a folder, the oldest first; none if it is not there."""
    return sorted(shelf.iterdir(), key=_made) if shelf.is_dir() else []


def _removed(entry: Path) -> int:
    """Removes a file or folder, if it is there; gives its bytes."""
    size = _bytes(entry)
    if entry.is_dir():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)
    return size


def _made(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except OSError:
        return 0.0


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    found = 0
    for file in files:
        try:
            found += file.lstat().st_size if file.is_file() else 0
        except OSError:
            continue
    return found
