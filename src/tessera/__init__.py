"""Tessera: vision-language models from interchangeable, verified parts.

`import tessera` is light (neither torch nor transformers is imported) and makes the Auto classes of
transformers load Tessera's models. The names below are imported when they are first used.
"""

from __future__ import annotations

import importlib
from typing import Any

from tessera.models import auto as _auto

__version__ = "0.1.0"

_LAZY = {
    "TesseraConfig": "tessera.models.configuration",
    "TesseraVisionConfig": "tessera.models.configuration",
    "TesseraDualEncoderConfig": "tessera.models.configuration",
    "TesseraModel": "tessera.models.composed",
    "TesseraForConditionalGeneration": "tessera.models.modeling",
    "TesseraVisionModel": "tessera.models.vision",
    "TesseraDualEncoder": "tessera.models.dual_encoder",
    "TesseraProcessor": "tessera.models.processing",
    "TesseraDualProcessor": "tessera.models.processing",
    "TesseraImageProcessor": "tessera.models.image_processing",
    "build_tokenizer": "tessera.models.tokenizer",
    "load": "tessera.models.reference",
    "save": "tessera.models.reference",
    "to_llava": "tessera.models.export",
    "plug": "tessera.hosts.plug",
    "attach": "tessera.hosts.plug",
    "part": "tessera.registry",
    "UserError": "tessera.errors",
    "TesseraError": "tessera.errors",
}

__all__ = ["__version__", *_LAZY]  # noqa: PLE0604 - names of strings


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'tessera' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})


_auto.install()
