"""`tessera env`: what a bug report needs to know about this machine; nothing that identifies it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from rich.table import Table

from tessera.console import JsonOption, emit

PACKAGES = ("torch", "transformers", "accelerate", "huggingface_hub", "safetensors", "numpy", "pillow")
OPTIONAL = (
    "torchvision",
    "peft",
    "timm",
    "open_clip_torch",
    "pyarrow",
    "datasets",
    "webdataset",
    "tensorboard",
    "trl",
    "fastapi",
    "uvicorn",
    "lmms_eval",
)


def env(as_json: JsonOption = False) -> None:
    """Show the versions, the processor and the memory that a bug report needs. No names, no paths."""
    emit(environment(), as_json, _table)


def environment() -> dict[str, Any]:
    """Versions of Python, Tessera and its dependencies; system, processor, memory (bytes), accelerators.

    A package that is not installed is None; of the optional packages only the installed ones are listed.
    """
    optional = {name: version for name in OPTIONAL if (version := _version(name)) is not None}
    return {
        "tessera": _version("tessera-vlm") or _source_version(),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "packages": {name: _version(name) for name in PACKAGES} | optional,
        "system": {"os": _os(), "machine": platform.machine()},
        "cpu": {"model": _cpu_model(), "logical_cores": os.cpu_count(), "usable_cores": _usable_cores()},
        "memory_bytes": _memory(),
        "torch": _torch(),
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _source_version() -> str:
    import tessera

    return f"{tessera.__version__} (not installed)"


def _os() -> str:
    if platform.system() == "Linux":
        try:
            return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, Linux {platform.release()}"
        except (OSError, KeyError):
            pass
    return f"{platform.system()} {platform.release()}"


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or "unknown")


def _usable_cores() -> int | None:
    """Cores this process may run on; containers and schedulers often allow fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _torch() -> dict[str, Any] | None:
    """What only torch itself knows: threads, instruction set, accelerators. None if it is not installed."""
    try:
        import torch
    except ImportError:
        return None
    gpus = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            gpus.append({"name": properties.name, "memory_bytes": properties.total_memory})
    return {
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda if gpus else None,
        "gpus": gpus,
        "mps": torch.backends.mps.is_available(),
    }


def _table(found: dict[str, Any]) -> Table:
    table = Table("", "", box=None, show_header=False, pad_edge=False)
    table.add_row("tessera", found["tessera"])
    table.add_row("python", found["python"])
    for name, version in found["packages"].items():
        table.add_row(name, version or "not installed")
    cpu = found["cpu"]
    table.add_row("system", f"{found['system']['os']}, {found['system']['machine']}")
    table.add_row("cpu", f"{cpu['model']}, {cpu['logical_cores']} cores, {cpu['usable_cores']} usable")
    if found["memory_bytes"]:
        table.add_row("memory", f"{found['memory_bytes'] / 2**30:.1f} GiB")
    if torch := found["torch"]:
        table.add_row("torch runs on", f"{torch['threads']} threads, {torch['instructions']}")
        gpus = [f"{g['name']} ({g['memory_bytes'] / 2**30:.0f} GiB)" for g in torch["gpus"]]
        accelerators = ", ".join(gpus) + (f", CUDA {torch['cuda']}" if gpus else "")
        table.add_row("accelerator", accelerators or ("Apple MPS" if torch["mps"] else "none"))
    return table
