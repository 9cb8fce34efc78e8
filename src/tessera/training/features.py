"""Outputs of frozen encoders, computed once per image and kept in files.

They are files and not memory, so that a resumed run reads exactly the numbers that the first one computed.

    out/cache/<hash of the frozen weights>/<process>/000000.safetensors   features [k, n, D]; metadata: k keys
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tessera.errors import TesseraError
from tessera.io import atomic_write
from tessera.nn.tokens import VisualTokens

SOCKETS = ("experts", "tokens")
"""Besides the encoders, what stands between an image and the connector."""
FILES = 20_000
"""Most files of a store: all of them are mapped into memory, and systems limit the number of maps."""


@runtime_checkable
class EncodesImages(Protocol):
    """A model that encodes images by themselves, unless it `reads_question`: then features depend on what is asked."""

    @property
    def reads_question(self) -> bool: ...

    def encode_images(self, pixel_values: Tensor) -> VisualTokens:
        """[M, 3, S, S] -> features [M, n, D] in front of the connector."""
        ...


def cacheable(model: nn.Module, sockets: dict[str, nn.Module], trained: set[int]) -> list[str]:
    """Sockets in front of the connector if all are frozen and the model encodes images by themselves, or none."""
    front = [name for name in sockets if name.startswith("encoders.") or name in SOCKETS]
    if not isinstance(model, EncodesImages) or model.reads_question:
        return []
    free = any(id(p) in trained for name in front for p in sockets[name].parameters())
    return [] if free else front


def fingerprint(modules: Sequence[nn.Module], extra: str) -> str:
    """16 hexadecimal digits that change with any weight of `modules` or with `extra`."""
    digest = hashlib.sha256(extra.encode())
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


class FeatureStore:
    """Features [n, D] by image key, in `folder`; what exceeds `limit` bytes is computed each time."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit, self.bytes = folder, limit, 0
        self.closed = False
        """Whether nothing more is stored, because the limit or the end of the disk is reached."""
        self._rows: dict[str, Tensor] = {}
        self._files = 0
        for path in sorted(folder.glob("*.safetensors")):
            self._open(path)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def row(self, key: str) -> Tensor:
        """The stored features [n, D] of an image."""
        return self._rows[key]

    def get(self, keys: Sequence[str], pixels: Tensor, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Features [M, n, D] of images `pixels [M, 3, H, W]` called `keys`; `encode` makes the missing."""
        missing = [i for i, key in enumerate(keys) if key not in self._rows and key not in keys[:i]]
        fresh: dict[str, Tensor] = {}
        if missing:
            made = encode(pixels[missing])
            fresh = {keys[i]: row for i, row in zip(missing, made, strict=True)}
            self._store([keys[i] for i in missing], made)
        return torch.stack([fresh[k] if k in fresh else self._rows[k].to(pixels.device) for k in keys])

    def _store(self, keys: list[str], features: Tensor) -> None:
        size = features.numel() * features.element_size()
        if self.closed or self.bytes + size > self.limit or self._files >= FILES:
            self.closed = True
            return
        path = self.folder / f"{self._files:06}.safetensors"
        try:
            with atomic_write(path) as temporary:
                save_file({"features": features.detach().cpu().contiguous()}, temporary, {"keys": json.dumps(keys)})
        except (SafetensorError, TesseraError, OSError):
            self.closed = True
            return
        self._open(path)

    def _open(self, path: Path) -> None:
        with safe_open(path, "pt") as file:
            keys = json.loads(file.metadata()["keys"])
            features = file.get_tensor("features")
        self._rows.update(zip(keys, features, strict=True))
        self.bytes += features.numel() * features.element_size()
        self._files += 1
