"""Questions about images as a family's processor writes them, and where in a prompt the images end.

A prompt is a *head* (everything up to the last token of the last image) and a *tail* (the question and what follows it). Heads of
questions about the same images are equal; tails are tokenized alone, behind an image token, which is a special token and so
a border for every tokenizer. That this is what the processor does is checked on a prompt of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor

from tessera.errors import UserError

if TYPE_CHECKING:
    from PIL import Image

Message: TypeAlias = Mapping[str, Any]
"""Of a chat template: {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "..."}]}."""
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")
_PROBE = "Is there anything to see?"


class Asking:
    """A processor with what it needs to know of the model."""

    def __init__(self, model: Any, processor: Any, name: str) -> None:
        """name: what messages call the model. Raises `UserError` for a processor without a chat template."""
        if getattr(processor, "chat_template", None) is None:
            raise UserError(
                f"{name} has no chat template, so Tessera does not know how it is asked; add a chat_template.jinja to its folder."
            )
        self.processor, self.name = processor, name
        self.tokenizer: Any = getattr(processor, "tokenizer", processor)
        self.device, self.dtype = model.device, model.dtype
        config = model.config.get_text_config()
        self.context: int | None = getattr(config, "max_position_embeddings", None)
        marks = (getattr(processor, name, None) for name in ("image_token", "boi_token"))
        self.marks = [mark for mark in marks if isinstance(mark, str) and mark]

    def message(self, question: str, images: int) -> list[Message]:
        """One user's message: images first. Raises `UserError` for an empty question, or one with a placeholder of images."""
        if not question.strip():
            raise UserError("the question is empty; ask something, for example: Is there a dog?")
        for mark in self.marks:
            if mark in question:
                raise UserError(
                    f"{self.name} cannot take this question with {images} image(s): it holds {mark}, which stands for an image."
                )
        return [{"role": "user", "content": [{"type": "image"}] * images + [{"type": "text", "text": question}]}]

    def render(self, messages: Sequence[Message]) -> str:
        """The chat template's text, up to where the answer begins. Raises `UserError` for messages that the template refuses."""
        from jinja2 import TemplateError

        try:
            text: str = self.processor.apply_chat_template(list(messages), add_generation_prompt=True)
        except (ValueError, TypeError, KeyError, IndexError, TemplateError) as error:
            raise UserError(f"{self.name} cannot take these messages: {_first(error)}") from error
        return text

    def inputs(self, texts: Sequence[str], images: Sequence[Sequence[Image.Image]]) -> dict[str, Any]:
        """What the model takes for rendered prompts, each with its own (equally many) images; padded on the left.

        Raises `UserError` for what the processor refuses, and for a prompt longer than the context.
        """
        pictures = [list(own) for own in images] if any(len(own) for own in images) else None
        padded: dict[str, Any] = {"padding": True, "padding_side": "left"} if len(texts) > 1 else {}
        try:
            found = self.processor(images=pictures, text=list(texts), return_tensors="pt", **padded)
        except UserError:
            raise
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise UserError(f"{self.name} cannot take this question with {len(images[0])} image(s): {_first(error)}") from error
        self.fits(found["input_ids"].shape[1])
        return dict(found.to(self.device, dtype=self.dtype))

    def fits(self, length: int) -> None:
        """Raises `UserError` for a prompt of so many tokens if the context has no room for an answer."""
        if self.context is not None and length >= self.context:
            raise UserError(
                f"the question is too long: with the images it takes {length} tokens, {length + 1 - self.context} more than this "
                f"model's context of {self.context} leaves room for. Shorten it, or give fewer images."
            )

    def tail(self, text: str) -> list[int] | None:
        """Token ids of a rendered prompt behind its last image; None if no placeholder of images is found in it."""
        if not self.marks:
            return None
        mark = max(self.marks, key=text.rfind)
        place = text.rfind(mark)
        if place < 0:
            return None
        alone = self._ids(mark)
        joined = self._ids(text[place:])
        return joined[len(alone) :] if joined[: len(alone)] == alone else None

    def head(self, images: Sequence[Image.Image]) -> dict[str, Any] | str:
        """The inputs of a prompt about these images, cut behind the last image token; or why there is no such place."""
        if not images:
            return "there are no images"
        text = self.render(self.message(_PROBE, len(images)))
        inputs = self.inputs([text], [images])
        tail = self.tail(text)
        ids: list[int] = inputs["input_ids"][0].tolist()
        if not tail or ids[-len(tail) :] != tail:
            return "where the images end cannot be told from its prompt"
        length = len(ids) - len(tail)
        if ids[length - 1] in tail:
            return "its prompt goes on with image tokens behind the last image"
        return {key: _cut(value, length) if key in PER_TOKEN else value for key, value in inputs.items()}

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def _cut(value: Tensor, length: int) -> Tensor:
    return value[:, :length]


def _first(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
