"""A copy of the source that is edited, checked in a process of its own, and put back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tests.lab.mutants import Edit

SOURCE = Path(__file__).parents[3] / "src" / "tessera"
CHECK = Path(__file__).with_name("check.py")
LIKELY = {
    "nn": ("core layers", "core labels", "core hosts"),
    "hosts": ("core generation", "core hosts"),
    "models": ("core generation", "core labels"),
    "training": ("core plans", "core labels", "core trainer"),
    "evaluation": ("core evaluation",),
    "world": ("core world",),
    "data": ("core labels",),
    "lab": ("core judge", "core layers", "part tokens/uniform"),
}
"""Where an edit of a folder most likely shows."""


class Found(NamedTuple):
    """names: which behave otherwise, or what became of the process; seconds: of the processor, for all that was looked at."""

    names: list[str]
    seconds: float


class Copy:
    """A copy of the package, in which files are edited; one at a time uses it."""

    def __init__(self, folder: Path) -> None:
        """`folder`: empty, or of an earlier copy, which is then used as it is."""
        self.root, self.kept = folder / "src" / "tessera", folder / "kept.json"
        self._server: subprocess.Popen[str] | None = None
        for path in () if self.root.is_dir() else SOURCE.rglob("*"):
            if "__pycache__" in path.parts or path.is_dir():
                continue
            target = self.root / path.relative_to(SOURCE)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix == ".py":  # a copy as of now: someone may be at work on the source
                shutil.copy2(path, target)
            else:
                target.symlink_to(path)

    def noticed(self, edits: Sequence[Edit], names: Sequence[str], first: bool) -> Found:
        """Which of `names` behave otherwise once the edits are made; the copy is then as before. `first`: at most one is looked
        for. Raises `AssertionError` for an edit that finds no place, and where the untouched source fails."""
        self._need(names)
        texts: dict[str, str] = {}
        before: dict[str, bytes] = {}
        times = {edit.file: (self.root / edit.file).stat().st_mtime_ns for edit in edits}
        for edit in edits:
            before.setdefault(edit.file, (self.root / edit.file).read_bytes())
            text = texts.get(edit.file) or before[edit.file].decode()
            assert text.count(edit.old) == 1, f"{edit.name}: {edit.old!r} stands {text.count(edit.old)} times in {edit.file}."
            texts[edit.file] = text.replace(edit.old, edit.new)
        try:
            for file, text in texts.items():
                (self.root / file).write_text(text, encoding="utf-8")
                os.utime(self.root / file, (1, 1))  # no compiled file is of that time
            return self._run(names, keep=False, first=first)
        finally:
            for file in texts:
                (self.root / file).write_bytes(before[file])
                os.utime(self.root / file, ns=(times[file], times[file]))

    def _need(self, names: Sequence[str]) -> None:
        """Computes what the untouched source does, where that is not known yet."""
        known = json.loads(self.kept.read_text()) if self.kept.is_file() else {}
        if missing := [name for name in names if name not in known]:
            failed = self._run(missing, keep=True, first=False).names
            assert not failed, f"without any edit these fail: {failed}"

    def _run(self, names: Sequence[str], keep: bool, first: bool) -> Found:
        if self._server is None:
            environment = {**os.environ, "PYTHONPATH": str(self.root.parent), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, str(CHECK), str(self.kept)]
            self._server = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=self.root.parent
            )
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps({"names": list(names), "keep": keep, "first": first}) + "\n")
        self._server.stdin.flush()
        return Found(*json.loads(self._server.stdout.readline()))

    def close(self) -> None:
        """Ends the process that computes."""
        if self._server is not None:
            self._server.communicate()
            self._server = None


def likely(edit: Edit) -> list[str]:
    """The fingerprints in which an edit most likely shows; of a part's file, which nothing else imports, all that it reaches."""
    folders = edit.file.split("/")
    if folders[0] == "parts":
        return [f"part {folders[1]}/{folders[2].removesuffix('.py')}"]
    return [name for name in LIKELY.get(folders[0], ()) if name in every()]


def near(edit: Edit) -> list[str]:
    """The parts that import an edited file of the core."""
    module = "tessera." + edit.file.removesuffix(".py").replace("/", ".")
    found = set()
    for path in (SOURCE / "parts").rglob("*.py"):
        if f"from {module} import" in path.read_text(encoding="utf-8"):
            socket, name = path.relative_to(SOURCE / "parts").parts[:2]
            found.add(f"part {socket}/{name.removesuffix('.py')}")
    return [name for name in every() if name in found]


def others(edit: Edit) -> list[str]:
    """All others that it can reach."""
    known = {*likely(edit), *near(edit)}
    return [] if edit.file.startswith("parts/") else [name for name in every() if name not in known]


def every() -> list[str]:
    """All fingerprints of the core and of parts."""
    from tessera import registry
    from tessera.lab.fingerprints.core import CORE

    return [f"core {name}" for name in CORE] + [f"part {s}/{n}" for s in registry.SOCKETS for n in registry.names(s)]


def harm(copy: Copy, edit: Edit) -> Found:
    """The first fingerprint that notices an edit, nothing if none does."""
    seconds = 0.0
    for names in (likely(edit), near(edit), others(edit)):
        found = copy.noticed([edit], names, first=True) if names else Found([], 0.0)
        seconds += found.seconds
        if found.names:
            return Found(found.names, seconds)
    return Found([], seconds)
