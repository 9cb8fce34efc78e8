"""`tessera export`: writes a model for others to load."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tessera.console import JsonOption, emit
from tessera.errors import UserError


class Format(StrEnum):
    """What can be written."""

    llava = "llava"
    folder = "folder"


class Precision(StrEnum):
    """Number type of the stored weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"


def export(
    model: Annotated[str, typer.Argument(help="A reference model (nano ...) or a folder.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist yet.")],
    format: Annotated[
        Format,
        typer.Option(help="llava: a stock LLaVA, readable without Tessera; folder: as it is."),
    ] = Format.llava,
    dtype: Annotated[Precision, typer.Option(help="Number type of the stored weights.")] = Precision.float32,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that exists.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Write a model folder: a stock LLaVA if the model's parts reduce to one, or Tessera's own (safetensors and processor)."""
    if out.is_file():
        raise UserError(f"{out} is a file; give the name of a folder.")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise UserError(f"{out} exists and is not empty; give another folder, or --force to replace it.")

    import torch

    from tessera.models import reference

    loaded, processor = reference.load(model, dtype=getattr(torch, dtype.value))
    if format is Format.folder:
        reference.save(loaded, processor, out, dtype=getattr(torch, dtype.value))
    else:
        from tessera.models.export import to_llava
        from tessera.models.modeling import TesseraForConditionalGeneration

        if not isinstance(loaded, TesseraForConditionalGeneration):
            raise UserError(
                f"{model} is a {loaded.config.model_type} model; only Tessera's composed models reduce to LLaVA. "
                "--format folder writes it as it is."
            )
        to_llava(loaded, processor, out)
    size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    found = {
        "model": model,
        "folder": str(out),
        "format": format.value,
        "dtype": dtype.value,
        "architecture": _architecture(out),
        "bytes": size,
    }
    emit(found, as_json, lambda f: f"{f['folder']}: {f['architecture']}, {size / 1e6:.1f} MB")


def _architecture(folder: Path) -> str:
    import json

    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return str((config.get("architectures") or [config.get("model_type", "?")])[0])
