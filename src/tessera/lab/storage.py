"""Keeps the folder of kept runs from growing without end.

A finished training run needs its model alone; its checkpoint and the features of its frozen towers, most of its bytes, go. Of
what is left the oldest goes while there is more than a limit; nothing of the last day, which another process may be at.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

LIMIT = 8 << 30
"""Bytes of kept runs that stay when nothing is young."""
YOUNG = 24 * 3600.0
"""Seconds for which whatever was made stays."""
_ONLY_WHILE_TRAINING = ("cache", "checkpoint")


def tidy(folder: Path, limit: int = LIMIT, young: float = YOUNG) -> int:
    """Tidies a `lab.cache_folder()`; gives the bytes that it freed. A folder that is not there, or a file that somebody else
    removes at the same time, is no error."""
    if not folder.is_dir():
        return 0
    freed = 0
    for run in folder.iterdir():
        if (run / "seconds.json").is_file() and (run / "model").is_dir():
            freed += sum(_removed(run / name) for name in _ONLY_WHILE_TRAINING)
    kept = sorted(folder.iterdir(), key=_made)
    sizes = [_bytes(entry) for entry in kept]
    total, now = sum(sizes), time.time()
    for entry, size in zip(kept, sizes, strict=True):
        if total <= limit or now - _made(entry) < young:
            break
        freed += _removed(entry)
        total -= size
    return freed


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
