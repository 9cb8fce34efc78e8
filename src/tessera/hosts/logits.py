"""Logits processors of parts join every `generate` of a plugged model."""

from __future__ import annotations

import functools
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from tessera.hosts.prompts import replace

if TYPE_CHECKING:
    from tessera.hosts.plug import Host


def wrap_generate(host: Host, undo: ExitStack) -> None:
    """`model.generate` gets the parts' processors behind the caller's own, until `undo` is closed."""
    model: Any = host.model
    original = model.generate

    @functools.wraps(original)
    def generate(*args: Any, **kwargs: Any) -> Any:
        from transformers import LogitsProcessorList

        inputs = {key: value for key, value in kwargs.items() if key not in ("logits_processor", "generation_config", "streamer")}
        if args and args[0] is not None:
            inputs.setdefault("input_ids", args[0])
        own = LogitsProcessorList(kwargs.pop("logits_processor", None) or [])
        own.extend(host.logits_processors(inputs))
        return original(*args, logits_processor=own, **kwargs)

    replace(model, "generate", generate, undo)
