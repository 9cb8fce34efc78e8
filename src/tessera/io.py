"""Atomic writing: a file is written under a temporary name and renamed, so that it is complete or not there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tessera.errors import TesseraError


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success it replaces `path`, on failure it is removed and `path` is as before.

    Raises `TesseraError` with the free space when the disk is full.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except Exception as error:
        if (told := disk_error(error, path)) is error:
            raise
        raise told from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on success it takes the place of `path`, on failure `path` is as before.

    An existing folder is moved aside first and put back if the exchange fails, so a good one is never lost.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    os.chmod(temporary, 0o777 & ~_umask())
    aside = temporary.with_name(temporary.name + ".old")
    try:
        yield temporary
        if path.exists():
            os.replace(path, aside)
        try:
            os.replace(temporary, path)
        except OSError:
            if aside.exists():
                os.replace(aside, path)
            raise
    except Exception as error:
        if (told := disk_error(error, path)) is error:
            raise
        raise told from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON (indented, keys as given) atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def disk_error(error: Exception, path: Path) -> Exception:
    """A full disk as a sentence; any other error as it was."""
    full = (errno.ENOSPC, errno.EDQUOT)
    # safetensors has an error of its own, which says the system's number in its text only.
    if getattr(error, "errno", None) not in full and not any(f"(os error {code})" in str(error) for code in full):
        return error
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(path.parent).free
        return TesseraError(
            f"the disk is full: {path} could not be written ({free / 1e6:.0f} MB free). What stood there before is untouched."
        )
    return TesseraError(f"the disk is full: {path} could not be written. What stood there before is untouched.")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
