"""Generation for questions about images: the images are read once, any number of questions follow.

    generator = Generator(model, processor)
    prefix = generator.prefix([image])
    generator.answer(prefix, ["Is there a dog?", "Where is the dog?"])
    for piece in generator.stream(prefix, "What does the sign say?"): ...

In greedy mode the tokens are those of `model.generate(do_sample=False)` in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from tessera.errors import UserError
from tessera.generation.cached import CachedEngine
from tessera.generation.decoding import PartialAnswer, decode
from tessera.generation.llama import obstacle
from tessera.generation.packed import PackedEngine
from tessera.generation.sampling import GREEDY, Chooser, Sampling
from tessera.generation.settings import ending_tokens, suppressed_tokens

if TYPE_CHECKING:
    from PIL import Image

Images: TypeAlias = "Sequence[Image.Image | Any] | Tensor"
"""A list of what the image processor takes, or pixel values [images, 3, S, S] that it has made, or image features
[images, n, E] that the model has made of those (`get_image_features`)."""

SIDE_BY_SIDE = 16
"""Most questions of one prefix that are decoded together; a packed row costs the square of their number."""
BUFFER_BYTES = 128 * 2**20
"""About how much keys and values may take while a batch is answered."""


@dataclass(frozen=True, slots=True)
class GeneratedAnswer:
    """What the model said.

    tokens       generated ids, without the end token
    probability  of exactly this answer, its end included, in [0, 1]
    finished     whether the model ended the answer itself, not the limit on tokens
    """

    text: str
    tokens: tuple[int, ...]
    probability: float
    finished: bool


@dataclass(frozen=True, slots=True)
class ImagePrefix:
    """Images as the language model has read them: `length` tokens, `images` images, and the engine's state."""

    images: int
    length: int
    state: Any


class Generator:
    """Answers questions with a composed model.

    The weights are read when the generator is made: after further training, make a new one. Language models of a Llama type
    (`tessera.generation.llama`) run on a decoder of our own; `why_slow` says why another one does not.
    """

    def __init__(self, model: Any, processor: Any, *, own_decoder: bool = True) -> None:
        """own_decoder: False computes everything with the model's own forward, for comparison.

        Raises `UserError` if the model's generation settings ask for something that is not done here.
        """
        if getattr(model, "reads_question", False):
            raise UserError("parts of this model read the question to see the image: ask it through HostGenerator.")
        self.model, self.processor = model, processor
        self.ends = ending_tokens(model, processor)
        suppressed = suppressed_tokens(model)
        kind = model.config.parts["coupling"]["kind"]
        language_model = model.model.language_model
        why = f"the coupling is {kind!r}, not 'prefix'" if kind != "prefix" else None
        self.why_slow: str | None = why or obstacle(language_model, model.get_output_embeddings())
        if not own_decoder:
            self.why_slow = "it was asked for"
        self.engine: PackedEngine | CachedEngine = (
            PackedEngine(model, suppressed) if self.why_slow is None else CachedEngine(model, suppressed)
        )
        reach = getattr(language_model.config, "max_position_embeddings", None) or processor.max_length
        self.context: int = min(processor.max_length, reach)

    @torch.inference_mode()
    def prefix(self, images: Images) -> ImagePrefix:
        """Reads images (at most the processor's `max_images`, none for a question without images).

        Raises `UserError` for an image that cannot be read, or more than the model takes.
        """
        count = len(images)
        ids = self._prefix_ids(count)
        return ImagePrefix(count, len(ids), self._read([images], ids))

    @torch.inference_mode()
    def answer(
        self,
        prefix: ImagePrefix,
        questions: Sequence[str],
        max_new_tokens: int = 32,
        sampling: Sampling = GREEDY,
    ) -> list[GeneratedAnswer]:
        """One answer per question, all about the images of `prefix`, decoded side by side.

        Raises `UserError` for an empty question, or one that is longer than the context.
        """
        asked = self._question_ids(questions, prefix.length)
        return self._answer(prefix.state, [asked], prefix.length, max_new_tokens, sampling)[0]

    @torch.inference_mode()
    def answer_batch(
        self,
        rows: Sequence[tuple[Images, Sequence[str]]],
        max_new_tokens: int = 32,
        sampling: Sampling = GREEDY,
    ) -> list[list[GeneratedAnswer]]:
        """Many rows of (images, questions about them) -> one list of answers per row, in order.

        Rows with equally many images run side by side, as many as fit into a fixed amount of memory. Raises as `prefix` and
        `answer` do.
        """
        by_count: dict[int, list[int]] = {}
        for row, (images, questions) in enumerate(rows):
            if len(questions):
                by_count.setdefault(len(images), []).append(row)
        answers: list[list[GeneratedAnswer]] = [[] for _ in rows]
        prefixes = {count: self._prefix_ids(count) for count in by_count}
        asked = {
            row: self._question_ids(rows[row][1], len(prefixes[count])) for count, members in by_count.items() for row in members
        }
        for count, members in by_count.items():
            ids = prefixes[count]
            for chunk in self._chunks(members, asked, len(ids), max_new_tokens):
                state = self._read([rows[row][0] for row in chunk], ids)
                found = self._answer(state, [asked[row] for row in chunk], len(ids), max_new_tokens, sampling)
                for row, own in zip(chunk, found, strict=True):
                    answers[row] = own
        return answers

    def stream(
        self,
        prefix: ImagePrefix,
        question: str,
        max_new_tokens: int = 32,
        sampling: Sampling = GREEDY,
    ) -> Stream:
        """The answer's text in pieces as it is made; see `Stream`. Raises as `answer` does, at once."""
        asked = self._question_ids([question], prefix.length)
        return Stream(self, prefix, asked[0], max_new_tokens, sampling)

    # Reading

    def _prefix_ids(self, images: int) -> list[int]:
        most = self.processor.max_images
        if images > most:
            raise UserError(f"{images} images were given; this model takes at most {most}.")
        ids: list[int] = self.processor.prefix_ids(images)
        if len(ids) >= self.context:
            raise UserError(
                f"{images} images take {len(ids)} tokens, {len(ids) - self.context + 1} more than this model's context of "
                f"{self.context} leaves room for: give fewer images."
            )
        return ids

    def _question_ids(self, questions: Sequence[str], prefix: int) -> list[list[int]]:
        found = []
        for question in questions:
            if not question.strip():
                raise UserError("the question is empty; ask something, for example: Is there a dog?")
            ids: list[int] = self.processor.question_ids(question)
            if self.processor.image_token_id in ids:
                raise UserError(f"the question holds {self.processor.image_token}, which stands for an image: leave it out.")
            over = prefix + len(ids) + 1 - self.context
            if over > 0:
                raise UserError(
                    f"the question is too long: with the images it takes {prefix + len(ids)} tokens, {over} more than "
                    f"this model's context of {self.context} leaves room for. Shorten it by {over} tokens or more, or "
                    "give fewer images."
                )
            found.append(ids)
        return found

    def _read(self, sets: Sequence[Images], ids: list[int]) -> Any:
        """The engine's state for several sets of equally many images."""
        device = self.model.get_input_embeddings().weight.device
        features = self._features(sets) if len(sets[0]) else None
        return self.engine.prefix(torch.tensor([ids] * len(sets), device=device), features)

    def _features(self, sets: Sequence[Images]) -> Tensor:
        """Image features [all images, n, E]; what are features already stays as it is."""
        made = [
            images
            if isinstance(images, Tensor)
            else self.processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
            for images in sets
        ]
        joined = torch.cat(made).to(self.model.device)
        return joined if joined.ndim == 3 else self.engine.image_features(joined)

    def _chunks(self, rows: Sequence[int], asked: dict[int, list[list[int]]], prefix: int, new: int) -> Iterator[list[int]]:
        """The rows in portions whose buffers are not too large."""
        chunk: list[int] = []
        used = 0
        for row in rows:
            tokens = sum(sorted(map(len, asked[row]))[-SIDE_BY_SIDE:])
            columns = 2 * prefix + tokens + min(len(asked[row]), SIDE_BY_SIDE) * new
            if chunk and used + columns * self.engine.column_bytes > BUFFER_BYTES:
                yield chunk
                chunk, used = [], 0
            chunk.append(row)
            used += columns * self.engine.column_bytes
        if chunk:
            yield chunk

    # Answering

    def _answer(
        self, state: Any, asked: Sequence[Sequence[list[int]]], prefix: int, new: int, sampling: Sampling
    ) -> list[list[GeneratedAnswer]]:
        """Answers to the questions `asked` (ids per item of the state), at most `SIDE_BY_SIDE` of an item at a time."""
        answers: list[list[GeneratedAnswer]] = [[] for _ in asked]
        for begin in range(0, max(map(len, asked), default=0), SIDE_BY_SIDE):
            items = [i for i, questions in enumerate(asked) if len(questions) > begin]
            portion = [asked[i][begin : begin + SIDE_BY_SIDE] for i in items]
            rows, steps = self._begin(self.engine.select(state, items), portion, prefix, new, sampling)
            for _ in steps:
                pass
            most = len(rows) // len(items)
            for place, item in enumerate(items):
                own = rows[place * most : place * most + len(portion[place])]
                answers[item] += map(self._said, own)
        return answers

    def _begin(
        self, state: Any, asked: Sequence[Sequence[list[int]]], prefix: int, new: int, sampling: Sampling
    ) -> tuple[list[PartialAnswer], Iterator[None]]:
        """Rows of a grid (items, most questions of an item), and the steps that fill them."""
        if new < 1:
            raise UserError(f"max_new_tokens must be at least 1, not {new}.")
        most = max(map(len, asked))
        rows = [
            PartialAnswer(min(new, self.context - prefix - len(questions[q])) if q < len(questions) else 0)
            for questions in asked
            for q in range(most)
        ]
        run = self.engine.start(state, asked, max(row.limit for row in rows) - 1)
        return rows, decode(run, rows, Chooser(sampling, run.logits.device), self.ends)

    def _said(self, row: PartialAnswer) -> GeneratedAnswer:
        return GeneratedAnswer(self._text(row), tuple(row.tokens), math.exp(row.log_probability), row.finished)

    def _text(self, row: PartialAnswer) -> str:
        text: str = self.processor.tokenizer.decode(row.tokens, skip_special_tokens=True)
        return text.strip()


class Stream:
    """The pieces of one answer's text: iterate once; then `answer` is the whole. `prompt_tokens` were read for it."""

    def __init__(self, generator: Generator, prefix: ImagePrefix, question: list[int], new: int, sampling: Sampling) -> None:
        self.answer: GeneratedAnswer | None = None
        self.prompt_tokens = prefix.length + len(question)
        self._pieces = self._make(generator, prefix, question, new, sampling)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    @torch.inference_mode()
    def _make(
        self, generator: Generator, prefix: ImagePrefix, question: list[int], new: int, sampling: Sampling
    ) -> Iterator[str]:
        rows, steps = generator._begin(prefix.state, [[question]], prefix.length, new, sampling)
        shown = ""
        for _ in steps:
            text = generator._text(rows[0])
            # Half a character of a byte-level tokenizer reads as the replacement character: wait for the rest.
            if rows[0].open and text.endswith("\ufffd"):
                continue
            if len(text) > len(shown) and text.startswith(shown):
                yield text[len(shown) :]
                shown = text
        self.answer = generator._said(rows[0])
