"""Loading and saving models: the shipped reference models, local folders, and any transformers
checkpoint.

Checkpoints are safetensors; nothing is unpickled. The network is used only for a name of the form `org/name`
that is no local folder, that is, when the user names a model of the Hugging Face hub.
"""

from __future__ import annotations

import contextlib
import json
import re
import struct
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessera.errors import UserError, unknown
from tessera.io import atomic_folder

REFERENCES = ("nano", "nano-clip", "object-expert", "reading-expert")

_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def reference_folder(name: str) -> Path:
    """Where the shipped model `name` lies in this installation (whether it is there or not)."""
    return Path(str(resources.files("tessera.models"))) / "weights" / name


def load(name_or_path: str | Path, dtype: torch.dtype = torch.float32, attn_implementation: str | None = None) -> tuple[Any, Any]:
    """A model in evaluation mode and its processor.

    name_or_path: one of `REFERENCES`, a folder (Tessera's, or any transformers image-text-to-text
    checkpoint), or a hub id. A vision expert comes with its image processor. Raises `UserError` for an
    unknown name, a folder without a configuration or weights, a truncated or pickled weights file, and
    weights that do not fit the configuration.
    """
    where, local = resolve(name_or_path)
    if local:
        check_folder(Path(where))
    return _load(where, local, dtype, attn_implementation)


def resolve(name_or_path: str | Path) -> tuple[str, bool]:
    """(folder, True), or (hub id, False). Raises `UserError` for a name that is neither."""
    text = str(name_or_path)
    path = Path(text).expanduser()
    if path.is_dir():
        return str(path), True
    if text in REFERENCES:
        folder = reference_folder(text)
        if not folder.is_dir():
            raise UserError(f"the reference model {text!r} is not part of this installation ({folder} is missing).")
        return str(folder), True
    if path.is_file():
        raise UserError(f"{text} is a file; a model is a folder with config.json and {_WEIGHTS}.")
    if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text) and not path.parent.exists():
        return text, False
    if "/" in text or text.startswith((".", "~")):
        raise UserError(f"there is no model folder {text}.")
    raise unknown("model", text, REFERENCES)


def check_folder(folder: Path) -> None:
    """Raises `UserError` unless the folder has a readable configuration and whole safetensors weights."""
    config = folder / "config.json"
    if not config.is_file():
        raise UserError(f"{folder} is not a model: it has no config.json.")
    _read_json(config)
    index = folder / _INDEX
    if index.is_file():
        shards = sorted(set(_read_json(index).get("weight_map", {}).values()))
    else:
        shards = [_WEIGHTS]
    for shard in shards:
        if (folder / shard).is_file():
            check_safetensors(folder / shard)
        elif index.is_file():
            raise UserError(f"{folder} is incomplete: the weights file {shard} is missing.")
        elif any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
            raise UserError(
                f"{folder} has pickled weights only, which can run code when they are read; save it again as safetensors."
            )
        else:
            raise UserError(f"{folder} has no weights: {_WEIGHTS} is missing.")


def check_safetensors(path: Path) -> None:
    """Raises `UserError` unless the file is as long as its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if len(start) < 8 or length > 100_000_000:
            raise UserError(f"{path} is not a safetensors file, or was cut off at its very beginning ({size} bytes).")
        text = file.read(length)
    try:
        header = json.loads(text) if len(text) == length else None
        ends = [value["data_offsets"][1] for key, value in header.items() if key != "__metadata__"] if header else None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise UserError(f"{path} is damaged: its header cannot be read.") from None
    if ends is None:
        raise UserError(f"{path} is truncated: it ends after {size} bytes, inside its header.")
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise UserError(f"{path} is truncated: {size} of {expected} bytes are there. Copy or save it again.")


def save(model: Any, processor: Any, folder: str | Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """Writes model and processor (or None) to `folder`, whole or not at all, floating weights as `dtype`."""
    with atomic_folder(folder) as temporary, without_bars():
        model.save_pretrained(temporary, state_dict=_cast(model.state_dict(), dtype))
        config = json.loads((temporary / "config.json").read_text(encoding="utf-8"))
        config["dtype"] = str(dtype).removeprefix("torch.")
        (temporary / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        if processor is not None:
            processor.save_pretrained(temporary)
    return Path(folder)


def _cast(state: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The state with floating tensors as `dtype`; what was shared stays shared, so that it is stored once."""
    done: dict[tuple[int, tuple[int, ...]], Tensor] = {}
    cast: dict[str, Tensor] = {}
    for name, value in state.items():
        key = (value.data_ptr(), tuple(value.shape))
        if not value.is_floating_point():
            cast[name] = value
        elif value.numel() and key in done:
            cast[name] = done[key]
        else:
            cast[name] = done[key] = value.to(dtype, copy=True)
    return cast


def _load(where: str, local: bool, dtype: torch.dtype, attn_implementation: str | None) -> tuple[Any, Any]:
    import transformers

    from tessera.models.auto import register_models

    register_models()
    options: dict[str, Any] = {"local_files_only": local, "trust_remote_code": False}
    try:
        with without_bars():
            config = transformers.AutoConfig.from_pretrained(where, **options)
            kind = config.model_type
            auto = transformers.AutoModel if kind in _BY_AUTO_MODEL else transformers.AutoModelForImageTextToText
            model, report = auto.from_pretrained(
                where,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
                **options,
                **({"attn_implementation": attn_implementation} if attn_implementation else {}),
            )
            of_images = transformers.AutoImageProcessor if kind == "tessera_vision" else transformers.AutoProcessor
            processor = of_images.from_pretrained(where, **options)
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{where} cannot be loaded as a vision-language model: {_first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"the weights in {where} lack {len(missing)} tensors that its configuration wants, e.g. {missing[0]}.")
    return model.eval(), processor


_BY_AUTO_MODEL = ("tessera_vision", "tessera_dual_encoder")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not valid JSON ({_first_line(error)}).") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} should hold a JSON object, not {type(value).__name__}.")
    return value


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' progress bars, which mean nothing for models of this size."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
