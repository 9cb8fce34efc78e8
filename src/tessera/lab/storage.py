"""Keeps the folder of kept runs from growing without end.

A finished training run needs its model alone; its checkpoint and the features of its frozen towers, most of its bytes, go. Of
what is left the oldest goes while there is more than a limit; nothing of the last day, which another process may be at.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

LIMIT = 8 << 30
"""Bytes of kept runs; all claims of all parts leave about 7 GB."""
YOUNG = 24 * 3600.0
"""Seconds for which whatever was made stays."""
_ONLY_WHILE_TRAINING = ("cache", "checkpoint")


def tidy(folder: Path, limit: int = LIMIT, young: float = YOUNG) -> int:
    """Tidies a `lab.cache_folder()`; gives the bytes that it freed. A folder that is not there, or a file that somebody else
    removes at the same time, is no error."""
    if not folder.is_dir():
        return 0
    before = _bytes(folder)
    for run in folder.iterdir():
        if (run / "seconds.json").is_file() and (run / "model").is_dir():
            for name in _ONLY_WHILE_TRAINING:
                shutil.rmtree(run / name, ignore_errors=True)
    kept = sorted(folder.iterdir(), key=_made)
    sizes = {entry: _bytes(entry) for entry in kept}
    total, now = sum(sizes.values()), time.time()
    for entry in kept:
        if total <= limit or now - _made(entry) < young:
            break
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)
        total -= sizes[entry]
    return max(0, before - _bytes(folder))


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
