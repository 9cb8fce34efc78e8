"""Logits processors of parts join every `generate` of a plugged model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

from tessera.hosts.inputs import replace


def wrap_generate(model: Any, processors: Callable[[Mapping[str, Any]], list[Any]], undo: ExitStack) -> None:
    """`model.generate` gets what `processors` makes for its inputs behind the caller's own, until `undo` is closed."""
    original = model.generate

    @functools.wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        from transformers import LogitsProcessorList

        inputs = {key: value for key, value in kwargs.items() if key not in ("logits_processor", "generation_config", "streamer")}
        if args and args[0] is not None:
            inputs.setdefault("input_ids", args[0])
        own = LogitsProcessorList(kwargs.pop("logits_processor", None) or [])
        own.extend(processors(inputs))
        return original(*args, logits_processor=own, **kwargs)

    replace(model, "generate", generate, undo)
