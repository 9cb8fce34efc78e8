"""Provenance of measured numbers: a hash of the weights, versions of packages, the machine."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any


def weights_hash(model: Any) -> str:
    """16 hexadecimal digits of the model's weights and buffers, names and types included."""
    import torch

    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name}\x1f{value.dtype}\x1f{tuple(value.shape)}\x1e".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def parameter_count(model: Any) -> int:
    """Numbers that the model has learned; tied ones count once."""
    return sum(p.numel() for p in model.parameters())


def versions() -> dict[str, str]:
    """Versions of Tessera, Python and the packages that numbers may depend on."""
    import tessera

    found = {"tessera": tessera.__version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", "numpy", "pillow"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """Processor, usable cores and system in one line; nothing that identifies the machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{_processor()}, {cores} cores, {platform.system()} {platform.machine()}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or "unknown processor")


def peak_memory() -> int | None:
    """The most memory in bytes that this process has held so far, or None where the system does not say."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
