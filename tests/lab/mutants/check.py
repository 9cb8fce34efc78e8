"""Computes fingerprints and golden runs with the source that stands first on the path, in a process of its own for each order.

    python check.py KEPT

An order is a line of JSON, {"names": [...], "keep": false, "first": true}. With `keep` what the names are is added to the file
KEPT; without, it is compared with that, and `first` ends at the first difference. The answer is a line of JSON, [names that
cannot be computed or that differ, seconds of the processor]. What is not ours is imported once, before the processes part.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

THEIRS = ("torch", "transformers.modeling_utils", "transformers.generation.utils", "transformers.models.llama.modeling_llama")
THEIRS += ("transformers.image_processing_utils", "transformers.tokenization_utils_tokenizers", "numpy", "PIL.Image", "rich")
LONGEST = 900
"""Seconds of wall clock after which a process is ended."""


def compute(kept: Path, names: list[str], keep: bool, first: bool) -> list[str]:
    """See above."""
    from tessera.lab.behaviour import differences
    from tessera.lab.local_lab import LocalLab

    known: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        lab = LocalLab(cache=Path(folder), threads=1)
        for name in names:
            now = lab.behaviour(name)
            if keep:
                known[name] = now
            if "error" in now if keep else differences(known[name], now):
                found.append(name)
                if first:
                    break
    if keep:
        kept.write_text(json.dumps(known))
    return found


def apart(kept: Path, order: dict[str, Any]) -> tuple[list[str], float]:
    """`compute` in a process of its own, and the seconds that it took."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        signal.alarm(LONGEST)
        sys.dont_write_bytecode = not order["keep"]  # an edited file leaves no trace
        try:
            names = compute(kept, **order)
        except BaseException as error:
            names = [f"it does not run: {type(error).__name__}: {error}"]
        os.write(write, json.dumps(names).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        said = pipe.read()
    _, status, used = os.wait4(child, 0)
    return json.loads(said) if said else [f"it does not end, or ends by signal {status}"], used.ru_utime + used.ru_stime


if __name__ == "__main__":
    for module in THEIRS:
        importlib.import_module(module)
    for line in sys.stdin:
        sys.stdout.write(json.dumps(apart(Path(sys.argv[1]), json.loads(line))) + "\n")
        sys.stdout.flush()
