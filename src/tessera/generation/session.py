"""A conversation with one model about images, however the model generates: what `tessera ask` talks to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tessera.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from tessera.generation.sampling import Sampling
    from tessera.hosts.part import HostPart

OnText = Callable[[str], object]
"""Called with every piece of an answer as it is made."""
OWN = "tessera_vlm"
SILENT = ("tessera_dual_encoder", "tessera_vision")
"""Model types that answer no questions."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: its text, how many tokens it and its prompt have, its probability, whether it ended by itself."""

    text: str
    tokens: int
    probability: float | None
    finished: bool
    seconds: float
    prompt_tokens: int = 0


class Session:
    """Images are shown, then questions about them asked; images that questions may share are read once."""

    def __init__(self, model: Any, processor: Any, generator: Any, plugged: ExitStack | None = None) -> None:
        """generator: a `Generator` or `HostGenerator` of the model. plugged: what takes parts out of it again."""
        self.model, self.processor, self.generator = model, processor, generator
        self._images: list[Image.Image] = []
        self._prefix: Any = None
        self._plugged = ExitStack() if plugged is None else plugged

    def show(self, images: Sequence[Image.Image]) -> None:
        """What the next questions are about."""
        self._images, self._prefix = list(images), None

    def ask(self, question: str, max_new_tokens: int, on_text: OnText, sampling: Sampling | None = None) -> Said:
        """The answer, the likeliest one unless `sampling` says otherwise. What `on_text` raises ends it.

        Raises `UserError` for a question or images that the model cannot take.
        """
        from tessera.generation.sampling import GREEDY

        begin = time.perf_counter()
        if self._prefix is None:
            self._prefix = self.generator.prefix(self._images)
        stream = self.generator.stream(self._prefix, question, max_new_tokens, sampling or GREEDY)
        for piece in stream:
            on_text(piece)
        answer, seconds = stream.answer, time.perf_counter() - begin
        assert answer is not None
        return Said(answer.text, len(answer.tokens), answer.probability, answer.finished, seconds, stream.prompt_tokens)

    def close(self) -> None:
        """Takes plugged parts out of the model."""
        self._plugged.close()


def open_session(name: str, parts: Sequence[HostPart] = ()) -> Session:
    """A session with a reference model, a model folder or a hub id, `parts` plugged into it until it is closed.

    Raises `UserError` for what is none or answers nothing, and for parts that the model cannot take.
    """
    import torch

    from tessera.models import reference

    loaded, processor = reference.load(name)
    kind = loaded.config.model_type
    if kind in SILENT:
        raise UserError(
            f"{name} is a {'dual encoder' if kind == SILENT[0] else 'vision expert'}: it answers no questions. Ask nano."
        )
    if kind != OWN and torch.accelerator.is_available():
        loaded = loaded.to(torch.accelerator.current_accelerator(), torch.bfloat16)
    return session_with(loaded, processor, name, parts)


def session_with(model: Any, processor: Any, name: str = "this model", parts: Sequence[HostPart] = ()) -> Session:
    """A session with a model that is loaded; see `open_session`."""
    from tessera.generation.generate import Generator
    from tessera.generation.host_generate import HostGenerator
    from tessera.hosts.plug import plug

    if model.config.model_type == OWN and not parts:
        return Session(model, processor, Generator(model, processor))
    generator = HostGenerator(model, processor, name=name)
    with ExitStack() as undo:
        if parts:
            undo.enter_context(plug(model, *parts))
        return Session(model, processor, generator, undo.pop_all())
