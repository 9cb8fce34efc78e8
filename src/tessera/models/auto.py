"""Registers Tessera's models with transformers' Auto classes, without importing transformers before anyone
else does.

`import tessera` imports neither torch nor transformers. A finder on `sys.meta_path` waits for the four
modules that hold transformers' registers; right after one is executed (or at once, if it is in memory
already) the dictionary of registered extras in each of its registers is replaced by one that registers
Tessera's models when it is first read, and then is an ordinary dictionary again. So nothing is imported in
the middle of transformers' own imports, and nothing at all by programs that never use an Auto class.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

# Module -> its registers, each with a dictionary `_extra_content` of what others have registered.
_REGISTERS = {
    "transformers.models.auto.configuration_auto": ("CONFIG_MAPPING",),
    "transformers.models.auto.modeling_auto": (
        "MODEL_MAPPING",
        "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING",
        "MODEL_FOR_MULTIMODAL_LM_MAPPING",
        "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING",
    ),
    "transformers.models.auto.processing_auto": ("PROCESSOR_MAPPING",),
    "transformers.models.auto.image_processing_auto": ("IMAGE_PROCESSOR_MAPPING",),
}


class _State:
    """Whether the models are registered; one registration at a time."""

    done = False
    running = False
    lock = threading.RLock()


class _Pending(dict[Any, Any]):
    """A dictionary that registers Tessera's models before it is first read.

    Writing does not count as reading.
    """

    def __contains__(self, key: object) -> bool:
        register_models()
        return super().__contains__(key)

    def __getitem__(self, key: Any) -> Any:
        register_models()
        return super().__getitem__(key)

    def __iter__(self) -> Any:
        register_models()
        return super().__iter__()

    def __len__(self) -> int:
        register_models()
        return super().__len__()

    def get(self, key: Any, default: Any = None) -> Any:
        register_models()
        return super().get(key, default)

    def keys(self) -> Any:
        register_models()
        return super().keys()

    def values(self) -> Any:
        register_models()
        return super().values()

    def items(self) -> Any:
        register_models()
        return super().items()


class _Waiting(importlib.abc.MetaPathFinder):
    """Lets the other finders find an awaited module and looks at it after it has been executed."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in _REGISTERS:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(fullname, path, target)
            if spec is not None and spec.loader is not None:
                _prepare_after(spec.loader)
                return spec
        return None


def install() -> None:
    """Makes sure that the models will be registered when they are needed. Harmless to call again."""
    for name in _REGISTERS:
        if name in sys.modules:
            _prepare(sys.modules[name])
    if not any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiting())


def register_models() -> None:
    """Registers configurations, models and processors.

    Does nothing if that is done, or while transformers is being imported.
    """
    with _State.lock:
        if _State.done or _State.running or _importing():
            return
        _State.running = True
        try:
            _register()
            _State.done = True
        finally:
            _State.running = False


def _register() -> None:
    import transformers

    from tessera.models import (
        composed,
        configuration,
        dual_encoder,
        image_processing,
        modeling,
        processing,
        vision,
    )

    vlm, experts = configuration.TesseraConfig, configuration.TesseraVisionConfig
    dual = configuration.TesseraDualEncoderConfig
    for config_class in (vlm, experts, dual):
        transformers.AutoConfig.register(config_class.model_type, config_class, exist_ok=True)
        transformers.AutoImageProcessor.register(
            config_class,
            image_processor_classes={"pil": image_processing.TesseraImageProcessor},
            exist_ok=True,
        )
    models = {
        "AutoModel": (
            (vlm, composed.TesseraModel),
            (experts, vision.TesseraVisionModel),
            (dual, dual_encoder.TesseraDualEncoder),
        ),
        "AutoModelForImageTextToText": ((vlm, modeling.TesseraForConditionalGeneration),),
        "AutoModelForMultimodalLM": ((vlm, modeling.TesseraForConditionalGeneration),),
        "AutoModelForZeroShotImageClassification": ((dual, dual_encoder.TesseraDualEncoder),),
    }
    for auto, pairs in models.items():
        for config_class, model_class in pairs:
            getattr(transformers, auto).register(config_class, model_class, exist_ok=True)
    transformers.AutoProcessor.register(vlm, processing.TesseraProcessor, exist_ok=True)
    transformers.AutoProcessor.register(dual, processing.TesseraDualProcessor, exist_ok=True)


def _prepare(module: ModuleType) -> None:
    for name in _REGISTERS[module.__name__]:
        register = getattr(module, name, None)
        extras = getattr(register, "_extra_content", None)
        if not _State.done and isinstance(extras, dict) and not isinstance(extras, _Pending):
            register._extra_content = _Pending(extras)  # type: ignore[union-attr]


def _prepare_after(loader: Any) -> None:
    execute = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        execute(module)
        _prepare(module)

    loader.exec_module = exec_module


def _importing() -> bool:
    """Whether an import of one of transformers' modules is under way."""
    return any(
        name.partition(".")[0] == "transformers" and getattr(getattr(module, "__spec__", None), "_initializing", False)
        for name, module in list(sys.modules.items())
    )
