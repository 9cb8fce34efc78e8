"""A conversation with one model about images, however the model generates: what `tessera ask` talks to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tessera.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

    from tessera.generation.sampling import Sampling
    from tessera.hosts.part import HostPart

OnText = Callable[[str], object]
"""Called with every piece of an answer as it is made."""
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


class Session(Protocol):
    """Images are shown, then questions about them asked."""

    model: Any
    processor: Any

    def show(self, images: Sequence[Image.Image]) -> None:
        """What the next questions are about."""

    def ask(self, question: str, max_new_tokens: int, on_text: OnText, sampling: Sampling | None = None) -> Said:
        """The answer, the likeliest one unless `sampling` says otherwise. What `on_text` raises ends it.

        Raises `UserError` for a question or images that the model cannot take.
        """
        ...

    def close(self) -> None:
        """Takes plugged parts out of the model."""


def open_session(name: str, parts: Sequence[HostPart] = ()) -> Session:
    """A session with a reference model, a model folder or a hub id, `parts` plugged into it until it is closed.

    Raises `UserError` for what is none or answers nothing, and for parts that the model cannot take.
    """
    import torch

    from tessera.models import reference

    loaded, processor = reference.load(name)
    kind = loaded.config.model_type
    if kind == "tessera_vlm" and not parts:
        return OwnSession(loaded, processor)
    if kind in SILENT:
        raise UserError(
            f"{name} is a {'dual encoder' if kind == SILENT[0] else 'vision expert'}: it answers no questions. Ask nano."
        )
    if kind != "tessera_vlm" and torch.accelerator.is_available():
        loaded = loaded.to(torch.accelerator.current_accelerator(), torch.bfloat16)
    return TransformersSession(loaded, processor, name, parts)


class OwnSession:
    """Tessera's composed model: the images are read once, by the first question about them."""

    def __init__(self, model: Any, processor: Any) -> None:
        from tessera.generation.generate import Generator

        self.model, self.processor = model, processor
        self._generator = Generator(model, processor)
        self._images: list[Image.Image] = []
        self._prefix: Any = None

    def show(self, images: Sequence[Image.Image]) -> None:
        """See `Session`."""
        self._images, self._prefix = list(images), None

    def ask(self, question: str, max_new_tokens: int, on_text: OnText, sampling: Sampling | None = None) -> Said:
        """See `Session`."""
        from tessera.generation.sampling import GREEDY

        begin = time.perf_counter()
        if self._prefix is None:
            self._prefix = self._generator.prefix(self._images)
        stream = self._generator.stream(self._prefix, question, max_new_tokens, sampling or GREEDY)
        for piece in stream:
            on_text(piece)
        answer = stream.answer
        assert answer is not None
        return Said(
            answer.text,
            len(answer.tokens),
            answer.probability,
            answer.finished,
            time.perf_counter() - begin,
            self._prefix.length + len(self.processor.question_ids(question)),
        )

    def close(self) -> None:
        """See `Session`: nothing is plugged in."""


class TransformersSession:
    """Any image-text-to-text model of transformers, through its chat template and our decoding loop, with or without parts."""

    def __init__(self, model: Any, processor: Any, name: str, parts: Sequence[HostPart] = ()) -> None:
        """Raises `UserError` for a processor without a chat template, and for parts that the model cannot take."""
        from tessera.generation.host_generate import HostGenerator

        self.model, self.processor, self.name = model, processor, name
        self.generator = HostGenerator(model, processor, name=name)
        self._images: list[Image.Image] = []
        self._prefix: Any = None
        self._plugged = ExitStack()
        if parts:
            from tessera.hosts.plug import plug

            self.host = self._plugged.enter_context(plug(model, *parts))

    def show(self, images: Sequence[Image.Image]) -> None:
        """See `Session`."""
        self._images, self._prefix = list(images), None

    def ask(self, question: str, max_new_tokens: int, on_text: OnText, sampling: Sampling | None = None) -> Said:
        """See `Session`. Images that no question can share are read with every question."""
        from tessera.generation.sampling import GREEDY

        begin = time.perf_counter()
        if self._prefix is None:
            self._prefix = self.generator.prefix(self._images)
        stream = self.generator.stream(self._prefix, question, max_new_tokens, sampling or GREEDY)
        for piece in stream:
            on_text(piece)
        answer = stream.answer
        assert answer is not None
        return Said(
            answer.text,
            len(answer.tokens),
            answer.probability,
            answer.finished,
            time.perf_counter() - begin,
            stream.prompt_tokens,
        )

    def close(self) -> None:
        """See `Session`."""
        self._plugged.close()
