"""How questions reach a model: Tessera's own generation, or `generate` of any transformers image-text-to-text model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tessera.errors import UserError
from tessera.world.scene import Question

if TYPE_CHECKING:
    from PIL import Image

Row = tuple["Sequence[Image.Image]", Sequence[str]]
"""The images of a sample (none if blind) and the questions about them."""

_HINTS = {
    "yesno": "Answer with yes or no only.",
    "choice": "Answer with one of these only.",
    "open": "Answer with one word or a short name only.",
    "box": "Answer with four numbers only: left, top, right and bottom edge in hundredths of the picture, such as 12 20 45 60.",
    "style": "Answer with noto or twemoji only.",
    "where": "Answer with one of: top left, top, top right, left, center, right, bottom left, bottom, bottom right.",
}


class HasText(Protocol):
    """An answer."""

    @property
    def text(self) -> str: ...


class Generates(Protocol):
    """Anything that answers questions about images."""

    def answer_batch(self, rows: Sequence[Row], max_new_tokens: int) -> Sequence[Sequence[HasText]]:
        """One answer for every question of every row, in order."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said."""

    text: str


def generator(model: Any, processor: Any) -> Generates:
    """What answers for `model`: Tessera's generation for its own models, else `Loop`."""
    if is_ours(model) and model.reads_question:  # nothing can be read before the question is known
        from tessera.generation.host_generate import HostGenerator

        return HostGenerator(model, processor)
    if is_ours(model):
        from tessera.generation.generate import Generator

        made: Generates = Generator(model, processor)
        return made
    return Loop(model, processor)


def is_ours(model: Any) -> bool:
    """Whether the model is Tessera's composed one, which was trained on the questions as they are."""
    return getattr(getattr(model, "config", None), "model_type", None) == "tessera_vlm"


def hinted(question: Question) -> str:
    """The question's text with the form of the answer that is wanted, for models that do not know the world's conventions."""
    op = str(question.asked("op"))
    return f"{question.text} {_HINTS[op if op in _HINTS and not question.choices else question.form]}"


class Loop:
    """Greedy `model.generate` over one prompt per question, `size` of them at once."""

    def __init__(self, model: Any, processor: Any, size: int = 16) -> None:
        """Raises `UserError` for a processor that cannot write conversations."""
        if getattr(processor, "chat_template", None) is None:
            raise UserError(
                f"{type(processor).__name__} has no chat template, so Tessera does not know how this model is asked; "
                "add a chat_template.jinja to the model's folder."
            )
        self.model, self.processor, self.size = model, processor, size

    def answer_batch(self, rows: Sequence[Row], max_new_tokens: int) -> list[list[Answer]]:
        """See `Generates`."""
        flat = [(tuple(images), question) for images, questions in rows for question in questions]
        # Rows of one batch hold the same number of images, which every processor understands.
        order = sorted(range(len(flat)), key=lambda i: len(flat[i][0]))
        said: dict[int, str] = {}
        for start in _starts([len(flat[i][0]) for i in order], self.size):
            chosen = order[start]
            said.update(zip(chosen, self._generate([flat[i] for i in chosen], max_new_tokens), strict=True))
        answers = iter(Answer(said[i]) for i in range(len(flat)))
        return [[next(answers) for _ in questions] for _, questions in rows]

    def _generate(self, pairs: Sequence[tuple[tuple[Any, ...], str]], max_new_tokens: int) -> list[str]:
        texts = []
        for images, question in pairs:
            content = [{"type": "image"}] * len(images) + [{"type": "text", "text": question}]
            messages = [{"role": "user", "content": content}]
            texts.append(self.processor.apply_chat_template(messages, add_generation_prompt=True))
        pictures = [list(images) for images, _ in pairs] if pairs[0][0] else None
        inputs = self.processor(images=pictures, text=texts, padding=True, padding_side="left", return_tensors="pt").to(
            self.model.device
        )
        out = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.processor.batch_decode(new, skip_special_tokens=True)]


def _starts(counts: Sequence[int], size: int) -> Iterator[slice]:
    """Slices of at most `size` neighbours with equal counts."""
    start = 0
    for end in range(1, len(counts) + 1):
        if end == len(counts) or counts[end] != counts[start] or end - start == size:
            yield slice(start, end)
            start = end
