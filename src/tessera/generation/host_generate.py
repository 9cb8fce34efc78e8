"""Generation with any image-text-to-text model of transformers, in the shape of `tessera.generation.generate`:

    generator = HostGenerator(model, processor)
    prefix = generator.prefix([image])
    generator.answer(prefix, ["Is there a dog?", "Where is the dog?"])
    for piece in generator.stream(prefix, "What does the sign say?"): ...

In greedy mode the tokens are those of `model.generate(do_sample=False)` in float32. Parts may be plugged into the model; if what
one of them does to an image may depend on the question, every question is read with its images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from tessera.errors import UserError
from tessera.generation.asking import Asking, Message
from tessera.generation.generate import BUFFER_BYTES, SIDE_BY_SIDE, GeneratedAnswer
from tessera.generation.parts import session_of
from tessera.generation.prefixes import Head, agrees, full_prompt, go_on, questions, ragged, read, why_not
from tessera.generation.request import Request
from tessera.generation.route import Route
from tessera.generation.sampling import GREEDY, Sampling
from tessera.generation.saying import say
from tessera.generation.steps import Steps
from tessera.hosts.sequence import PlugSession

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

_SEEN = "its image tokens see the question"


@dataclass(slots=True)
class HostPrefix:
    """Images that questions are about.

    head     how the model has read them; None: not yet, or they are read again with every question
    why_not  why they are
    session  of the parts that were plugged in then
    """

    images: list[Image.Image]
    head: Head | None = None
    why_not: str | None = None
    session: PlugSession | None = None


class HostGenerator:
    """Answers questions with a model of transformers and its processor (which has a chat template)."""

    def __init__(self, model: Any, processor: Any, *, name: str = "this model", own_decoder: bool = True) -> None:
        """own_decoder: False computes everything with the model's own forward, for comparison.

        Raises `UserError` for a processor without a chat template.
        """
        self.model, self.processor = model, processor
        self.asking = Asking(model, processor, name)
        self.route = Route(model, own=own_decoder)
        self._proven: bool | None = None
        self._first: tuple[HostPrefix, list[int], Tensor] | None = None
        self._session: PlugSession | None = None

    @property
    def why_slow(self) -> str | None:
        """Why tokens are computed by the model's own forward and not by a decoder of ours; None if they are not."""
        return self.route.way()[1]

    @torch.inference_mode()
    def prefix(self, images: Sequence[Image.Image]) -> HostPrefix:
        """Images to ask about. They are read now, once for all questions, if it is known that this gives the right answers; the
        first images of a generator when more than one question is asked about them.

        Raises `UserError` for images that the processor refuses.
        """
        prefix = HostPrefix(list(images))
        self._renew(prefix)
        if self._proven:
            self._read(prefix)
        return prefix

    @torch.inference_mode()
    def answer(
        self,
        prefix: HostPrefix,
        questions: Sequence[str],
        max_new_tokens: int = 32,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
    ) -> list[GeneratedAnswer]:
        """One answer per question, all about the images of `prefix`, decoded side by side; `stop` strings end one, left out.

        Raises `UserError` for an empty question, or one that is longer than the context.
        """
        texts = self._texts(prefix, questions)
        answers: list[GeneratedAnswer | None] = [None] * len(questions)
        self._share(prefix, texts)
        for places in self._portions(prefix, texts, max_new_tokens):
            found: list[GeneratedAnswer] = []
            request, steps = self._begin(prefix, [texts[place] for place in places], max_new_tokens, sampling)
            for _ in say(request, steps, self.asking.tokenizer, sampling.seed, stop, found):
                pass
            for place, answer in zip(places, found, strict=True):
                answers[place] = answer
        return [answer for answer in answers if answer is not None]

    @torch.inference_mode()
    def answer_batch(
        self,
        rows: Sequence[tuple[Sequence[Image.Image], Sequence[str]]],
        max_new_tokens: int = 32,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
    ) -> list[list[GeneratedAnswer]]:
        """Many rows of (images, questions about them) -> one list of answers per row, in order.

        Rows with several questions read their images once; those with one, and equally many images, run side by side in a batch
        padded on the left. Raises as `answer` does.
        """
        answers: list[list[GeneratedAnswer]] = [[] for _ in rows]
        single: dict[int, list[int]] = {}
        for number, (images, asked) in enumerate(rows):
            if len(asked) == 1:
                single.setdefault(len(images), []).append(number)
            elif asked:
                answers[number] = self.answer(self.prefix(images), asked, max_new_tokens, sampling, stop)
        for members in single.values():
            for begin in range(0, len(members), SIDE_BY_SIDE):
                portion = members[begin : begin + SIDE_BY_SIDE]
                prefixes = [HostPrefix(list(rows[number][0])) for number in portion]
                texts = [self._texts(p, rows[number][1])[0] for p, number in zip(prefixes, portion, strict=True)]
                inputs = self.asking.inputs(texts, [p.images for p in prefixes])
                request, steps = full_prompt(self.model, self.route, inputs, **self._options(max_new_tokens, sampling, inputs))
                found: list[GeneratedAnswer] = []
                for _ in say(request, steps, self.asking.tokenizer, sampling.seed, stop, found):
                    pass
                for number, answer in zip(portion, found, strict=True):
                    answers[number] = [answer]
        return answers

    def stream(
        self,
        prefix: HostPrefix,
        question: str,
        max_new_tokens: int = 32,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
    ) -> HostStream:
        """The answer's text in pieces as it is made; see `HostStream`. Raises as `answer` does, at once."""
        texts = self._texts(prefix, [question])
        with torch.inference_mode():
            self._share(prefix, texts)
            request, steps = self._begin(prefix, texts, max_new_tokens, sampling)
        return HostStream(self, request, steps, sampling.seed, stop)

    def stream_messages(
        self,
        messages: Sequence[Message],
        images: Sequence[Image.Image],
        max_new_tokens: int = 32,
        sampling: Sampling = GREEDY,
        stop: Sequence[str] = (),
    ) -> HostStream:
        """The answer to a conversation (the chat template's messages; `images` in the order in which these name them).

        Raises `UserError` for what the template or the processor refuses.
        """
        with torch.inference_mode():
            inputs = self.asking.inputs([self.asking.render(messages)], [images])
            request, steps = full_prompt(self.model, self.route, inputs, **self._options(max_new_tokens, sampling, inputs))
        return HostStream(self, request, steps, sampling.seed, stop)

    def _texts(self, prefix: HostPrefix, questions: Sequence[str]) -> list[str]:
        return [self.asking.render(self.asking.message(question, len(prefix.images))) for question in questions]

    def _options(self, new: int, sampling: Sampling, inputs: Mapping[str, Any] | int) -> dict[str, Any]:
        """For prompts of these inputs, or of so many tokens: an answer ends where the context does."""
        if new < 1:
            raise UserError(f"max_new_tokens must be at least 1, not {new}.")
        length = inputs if isinstance(inputs, int) else int(inputs["input_ids"].shape[1])
        if self.asking.context is not None:
            new = min(new, self.asking.context - length)
        return {"max_new_tokens": new, "num_beams": 1, **sampling.options()}

    def _portions(self, prefix: HostPrefix, texts: Sequence[str], new: int) -> Iterator[list[int]]:
        """Which questions are decoded together."""
        most = SIDE_BY_SIDE
        head = prefix.head
        groups = [list(range(len(texts)))]
        if head is not None:
            if head.packed is not None:  # the buffer is as long as all answers together
                column = head.packed[..., 0, :].numel() * head.packed.element_size()
                most = max(1, min(most, BUFFER_BYTES // (column * new)))
            tails = [self.asking.tail(text) or [] for text in texts]
            if ragged(head, tails):
                lengths = sorted({len(tail) for tail in tails})
                groups = [[place for place, tail in enumerate(tails) if len(tail) == length] for length in lengths]
        for group in groups:
            for begin in range(0, len(group), most):
                yield group[begin : begin + most]

    def _begin(self, prefix: HostPrefix, texts: Sequence[str], new: int, sampling: Sampling) -> tuple[Request, Steps]:
        """Reads prompts about the images of `prefix`."""
        head = prefix.head
        tails = [self.asking.tail(text) for text in texts] if head is not None else []
        if head is None or not all(tails):
            inputs = self.asking.inputs(texts, [prefix.images] * len(texts))
            request, steps = full_prompt(self.model, self.route, inputs, **self._options(new, sampling, inputs))
            if self._proven is None and self._first is None and len(texts) == 1 and (tail := self.asking.tail(texts[0])):
                self._first = prefix, tail, steps.logits[0]
            return request, steps
        known = [tail for tail in tails if tail]
        length = len(head.ids) + max(map(len, known))
        self.asking.fits(length)
        filler = getattr(self.asking.tokenizer, "pad_token_id", None) or 0
        request = questions(self.route, head, known, filler, **self._options(new, sampling, length))
        return request, go_on(self.route, head, known, request.limit)

    def _share(self, prefix: HostPrefix, texts: Sequence[str]) -> None:
        """Sees to it that these prompts go on from the prefix's head, if they may.

        Nothing is shared for the first question of all: only two ways of computing one can show that they agree, and who asks
        a single question pays for one.
        """
        self._renew(prefix)
        if prefix.head is not None and (why := why_not(self.model)) is not None:  # hooked since
            prefix.head, prefix.why_not = None, why
        asked_before = self._first is not None and self._first[0] is prefix
        if prefix.head is not None or prefix.why_not is not None or not texts:
            return
        if self._proven is None and len(texts) == 1 and not asked_before:
            return
        head = self._read(prefix)
        if head is None or self._proven is not None:
            return
        if self._first is None or not asked_before:
            tail = self.asking.tail(texts[0])
            if not tail:
                return
            inputs = self.asking.inputs(texts[:1], [prefix.images])
            _, steps = full_prompt(self.model, self.route, inputs, **self._options(1, GREEDY, inputs))
            self._first = prefix, tail, steps.logits[0]
        _, tail, logits = self._first
        self._first = None
        self._proven = agrees(self.route, head, tail, logits)
        if not self._proven:
            prefix.head, prefix.why_not = None, _SEEN

    def _renew(self, prefix: HostPrefix) -> None:
        """What was found out with other parts plugged in is forgotten."""
        now = session_of(self.model)
        if self._session is not now:
            self._session, self._proven, self._first = now, None, None
        if prefix.session is not now:
            prefix.session, prefix.head, prefix.why_not = now, None, None

    def _read(self, prefix: HostPrefix) -> Head | None:
        why = why_not(self.model)
        if why is None and self._proven is False:
            why = _SEEN
        inputs = why or self.asking.head(prefix.images)
        found = inputs if isinstance(inputs, str) else read(self.route, inputs)
        if isinstance(found, str):
            prefix.why_not = found
            return None
        prefix.head = found
        return found


class HostStream:
    """The pieces of one answer's text: iterate once; then `answer` is the whole. `prompt_tokens` were read for it."""

    def __init__(self, generator: HostGenerator, request: Request, steps: Steps, seed: int | None, stop: Sequence[str]) -> None:
        self.answer: GeneratedAnswer | None = None
        self.prompt_tokens = int(request.input_ids.shape[1])
        self._pieces = self._make(generator.asking.tokenizer, request, steps, seed, stop)

    def __iter__(self) -> Iterator[str]:
        return self._pieces

    def _make(self, tokenizer: Any, request: Request, steps: Steps, seed: int | None, stop: Sequence[str]) -> Iterator[str]:
        shown = ""
        answers: list[GeneratedAnswer] = []
        for texts in say(request, steps, tokenizer, seed, stop, answers, stream=True):
            text = texts[0]
            if len(text) > len(shown) and text.startswith(shown):
                yield text[len(shown) :]
                shown = text
        self.answer = answers[0]
