"""The hooks that watch a model's inputs, so that the next prefill knows its tokens and images."""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from tessera.hosts.forward import ThreadStates
from tessera.hosts.prompts import Images, Prompt


class InputHooks:
    """Hooks of the model, of the module that joins images and text, and of its two methods that tell which is which."""

    def __init__(self, states: ThreadStates) -> None:
        self.states = states

    def install(self, model: nn.Module, base: Any, undo: ExitStack) -> None:
        """Watches until `undo` is closed. base: the module that owns `get_image_features`; it may be the model itself."""
        undo.callback(base.register_forward_pre_hook(self._on_base, with_kwargs=True).remove)
        if model is not base:
            undo.callback(model.register_forward_pre_hook(self._on_model, with_kwargs=True).remove)
        if hasattr(base, "get_placeholder_mask"):
            replace(base, "get_placeholder_mask", self._watched_placeholders(base.get_placeholder_mask), undo)
        if hasattr(base, "get_image_features"):
            replace(base, "get_image_features", self._watched_features(base.get_image_features), undo)

    @property
    def _prompt(self) -> Prompt:
        return self.states.own().prompt

    def _on_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        prompt = self._prompt
        prompt.labels = kwargs.get("labels")
        prompt.call = (module, args, kwargs)

    def _on_base(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        prompt = self._prompt
        ids = kwargs.get("input_ids", args[0] if args else None)
        prompt.ids = ids if isinstance(ids, Tensor) and not ids.is_floating_point() else None
        prompt.mask = kwargs.get("attention_mask")
        prompt.placeholders = None
        prompt.images = None
        if kwargs.get("labels") is not None:
            prompt.labels = kwargs["labels"]
        if prompt.call is None:
            prompt.call = (module, args, kwargs)
        for given in (kwargs.get("mm_encoder_outputs") or {}).values():
            prompt.images = next((known for known in prompt.encodings if known.features() is given), prompt.images)

    def _watched_placeholders(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def watched(*args: Any, **kwargs: Any) -> Any:
            found, prompt = original(*args, **kwargs), self._prompt
            for mask in found if isinstance(found, tuple) else (found,):
                if isinstance(mask, Tensor):
                    flat = mask[..., 0] if mask.dim() == 3 else mask
                    known = prompt.placeholders
                    prompt.placeholders = flat if known is None or known.shape != flat.shape else known | flat
            return found

        return watched

    def _watched_features(self, original: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(original)

        @functools.wraps(original)  # generate() reads the signature
        def watched(*args: Any, **kwargs: Any) -> Any:
            bound = dict(signature.bind(*args, **kwargs).arguments)
            images = Images(bound | bound.pop("kwargs", {}))
            self._prompt.encode(images)
            found = original(*args, **kwargs)
            try:
                images.features = weakref.ref(found)
            except TypeError:  # a tuple or tensor in families that return no ModelOutput
                images.features = lambda: None
            return found

        return watched


def replace(owner: nn.Module, name: str, value: Any, undo: ExitStack) -> None:
    """Sets a method on one object; `undo` takes it away again."""
    before = owner.__dict__.get(name)
    owner.__dict__[name] = value

    def restore() -> None:
        if before is None:
            owner.__dict__.pop(name, None)
        else:
            owner.__dict__[name] = before

    undo.callback(restore)
