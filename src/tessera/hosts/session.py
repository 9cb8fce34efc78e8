"""A conversation with one model about images, however the model generates: what `tessera ask` talks to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tessera.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

OnText = Callable[[str], object]
"""Called with every piece of an answer as it is made."""
SILENT = ("tessera_dual_encoder", "tessera_vision")
"""Model types that answer no questions."""


@dataclass(frozen=True, slots=True)
class Said:
    """An answer: its text, how many tokens it has, its probability where the model tells, whether it ended by itself."""

    text: str
    tokens: int
    probability: float | None
    finished: bool
    seconds: float


class Session(Protocol):
    """Images are shown, then questions about them asked."""

    model: Any
    processor: Any

    def show(self, images: Sequence[Image.Image]) -> None:
        """What the next questions are about."""

    def ask(self, question: str, max_new_tokens: int, on_text: OnText) -> Said:
        """The answer. Raises `UserError` for a question or images that the model cannot take."""
        ...


def open_session(name: str) -> Session:
    """A session with a reference model, a model folder or a hub id. Raises `UserError` for what is none, or answers nothing."""
    import torch

    from tessera.models import reference

    loaded, processor = reference.load(name)
    kind = loaded.config.model_type
    if kind == "tessera_vlm":
        return OwnSession(loaded, processor)
    if kind in SILENT:
        raise UserError(
            f"{name} is a {'dual encoder' if kind == SILENT[0] else 'vision expert'}: it answers no questions. Ask nano."
        )
    if torch.accelerator.is_available():
        loaded = loaded.to(torch.accelerator.current_accelerator(), torch.bfloat16)
    return TransformersSession(loaded, processor, name)


class OwnSession:
    """Tessera's composed model: the images are read once, by the first question about them."""

    def __init__(self, model: Any, processor: Any) -> None:
        from tessera.hosts.generate import Generator

        self.model, self.processor = model, processor
        self._generator = Generator(model, processor)
        self._images: list[Image.Image] = []
        self._prefix: Any = None

    def show(self, images: Sequence[Image.Image]) -> None:
        """See `Session`."""
        self._images, self._prefix = list(images), None

    def ask(self, question: str, max_new_tokens: int, on_text: OnText) -> Said:
        """See `Session`."""
        begin = time.perf_counter()
        if self._prefix is None:
            self._prefix = self._generator.prefix(self._images)
        stream = self._generator.stream(self._prefix, question, max_new_tokens)
        for piece in stream:
            on_text(piece)
        answer = stream.answer
        assert answer is not None
        return Said(answer.text, len(answer.tokens), answer.probability, answer.finished, time.perf_counter() - begin)


class TransformersSession:
    """Any image-text-to-text model of transformers, through its chat template and `generate`."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        """Raises `UserError` for a processor without a chat template."""
        if getattr(processor, "chat_template", None) is None:
            raise UserError(
                f"{name} has no chat template, so Tessera does not know how it is asked; add a chat_template.jinja to its folder."
            )
        self.model, self.processor, self.name = model, processor, name
        self._images: list[Image.Image] = []

    def show(self, images: Sequence[Image.Image]) -> None:
        """See `Session`."""
        self._images = list(images)

    def ask(self, question: str, max_new_tokens: int, on_text: OnText) -> Said:
        """See `Session`."""
        from transformers import TextStreamer

        class Pieces(TextStreamer):
            def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
                if text:
                    on_text(text)

        begin = time.perf_counter()
        inputs = self._inputs(question)
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        length = inputs["input_ids"].shape[1]
        out = self.model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            streamer=Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True),
        )
        tokens = out[0, length:].tolist()
        text = tokenizer.decode(tokens, skip_special_tokens=True).strip()
        return Said(text, len(tokens), None, len(tokens) < max_new_tokens, time.perf_counter() - begin)

    def _inputs(self, question: str) -> Any:
        if not question.strip():
            raise UserError("the question is empty; ask something, for example: Is there a dog?")
        content = [{"type": "image"}] * len(self._images) + [{"type": "text", "text": question}]
        try:
            prompt = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
            inputs = self.processor(images=self._images or None, text=[prompt], return_tensors="pt")
        except UserError:
            raise
        except (ValueError, TypeError, KeyError, IndexError) as error:
            first = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise UserError(f"{self.name} cannot take this question with {len(self._images)} image(s): {first}") from error
        context = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        length = inputs["input_ids"].shape[1]
        if context is not None and length >= context:
            raise UserError(
                f"the question is too long: with the images it takes {length} tokens, {length + 1 - context} more than this "
                f"model's context of {context} leaves room for. Shorten it, or give fewer images."
            )
        return inputs.to(self.model.device, dtype=self.model.dtype)
