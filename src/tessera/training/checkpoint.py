"""Checkpoints from which a run goes on exactly: safetensors and JSON, nothing pickled.

    out/checkpoint/
        model.safetensors      parameters and persistent buffers, shared ones once
        optimizer.safetensors  "<parameter>:<state>" for every parameter that trains in the stage
        state.json             step, counters, settings, sizes of the two files; written last

There is no random state to keep: the trainer seeds every step from (seed, step, process).
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tessera.errors import TesseraError, UserError
from tessera.io import atomic_folder
from tessera.training.optim import MuonAdamW, like

NAME = "checkpoint"
VERSION = 1
FILES = ("model.safetensors", "optimizer.safetensors")


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers by name, shared ones once, sharded ones gathered.

    Every process has to call it when the model is sharded.
    """
    return {name: _gathered(tensor) for name, tensor in _named(model).items()}


def load_model(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Fills `model` in place. Raises `UserError` when names or shapes differ."""
    own = _named(model)
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise UserError(
            f"the checkpoint is of another model: it lacks {len(missing)} tensors of this one {missing[:3]} "
            f"and has {len(unexpected)} others {unexpected[:3]}. Start in another folder or without resuming."
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise UserError(
                f"the checkpoint is of another model: {name} is {list(tensors[name].shape)} there and "
                f"{list(tensor.shape)} here. Start in another folder, or without resuming."
            )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def optimizer_tensors(optimizer: MuonAdamW) -> dict[str, Tensor]:
    """The optimiser's state by "<parameter>:<state>"; if the model is sharded, all processes call it."""
    found = {}
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            for key, value in optimizer.state[parameter].items():
                found[f"{name}:{key}"] = _gathered(value)
    return found


def load_optimizer(optimizer: MuonAdamW, tensors: dict[str, Tensor]) -> None:
    """Restores the optimiser's state. A parameter that never had a gradient has none."""
    own = {name: p for g in optimizer.param_groups for name, p in zip(g["names"], g["params"], strict=True)}
    kinds = {name: g["kind"] for g in optimizer.param_groups for name in g["names"]}
    for full, tensor in tensors.items():
        name, _, key = full.rpartition(":")
        if name not in own:
            raise UserError(f"the checkpoint has optimiser state of {name!r}, which does not train here.")
        state = optimizer.state_for(kinds[name], own[name])
        value = state[key]
        state[key].copy_(like(tensor.to(value.device), value) if value.ndim else tensor)


def save(out: Path, model: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Writes out/checkpoint; the one before stays until it is whole. Raises `TesseraError` on a full disk."""
    with atomic_folder(out / NAME) as folder:
        for name, tensors in zip(FILES, (model, optimizer), strict=True):
            _write(folder / name, tensors)
        state = {
            "version": VERSION,
            **state,
            "bytes": {name: (folder / name).stat().st_size for name in FILES},
        }
        (folder / "state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def load(out: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Tensor]] | None:
    """(state, model tensors, optimiser tensors) of out/checkpoint, or None when there is none.

    Raises `TesseraError` when it is damaged.
    """
    folder = out / NAME
    if not folder.exists():
        return None
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        for name, size in state["bytes"].items():
            actual = (folder / name).stat().st_size
            if actual != size:
                raise TesseraError(f"{folder / name} is damaged: it has {actual} bytes, {size} were written.")
        if state["version"] != VERSION:
            raise UserError(f"{folder} is of another version of Tessera (format {state['version']}, not {VERSION}).")
        model, optimizer = (load_file(folder / name) for name in FILES)
    except TesseraError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TesseraError(f"the checkpoint {folder} cannot be read ({error}). Delete it to start from the beginning.") from error
    return state, model, optimizer


def recover(out: Path) -> None:
    """Mends what a kill amid `save` left: puts a whole folder in place if there is none, deletes the rest."""
    leftovers = [p for p in out.glob(f".{NAME}.*") if p.is_dir()]
    if not (out / NAME).exists():
        for folder in sorted(leftovers, key=_step, reverse=True):
            if _step(folder) >= 0:
                os.replace(folder, out / NAME)
                break
    for folder in leftovers:
        shutil.rmtree(folder, ignore_errors=True)


def _step(folder: Path) -> int:
    """The step of a whole checkpoint, -1 of any other folder."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in state["bytes"].items())
        return int(state["step"]) if whole else -1
    except (OSError, ValueError, KeyError, TypeError):
        return -1


def _write(path: Path, tensors: dict[str, Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    shutil.copymode(path.parent, path)  # safetensors makes files that only their owner reads
    path.chmod(path.stat().st_mode & 0o666)
    with path.open("rb") as written:
        os.fsync(written.fileno())


def _named(model: nn.Module) -> dict[str, Tensor]:
    persistent = model.state_dict(keep_vars=True).keys()
    found: dict[str, Tensor] = dict(model.named_parameters())
    found.update((name, buffer) for name, buffer in model.named_buffers() if name in persistent)
    return found


def _gathered(tensor: Tensor) -> Tensor:
    gather = getattr(tensor, "full_tensor", None)
    return (gather() if gather is not None else tensor).detach().cpu()
