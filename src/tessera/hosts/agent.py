"""What an agent asks of a vision-language model, and models with a session that offer it.

An agent works around a model it knows nothing of: it shows images, asks for text, for the probability of a yes, and for how
unlikely given answers are.

Legend: T tokens of a prompt, A tokens of an answer, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from tessera.errors import UserError
from tessera.hosts.asking import PER_TOKEN, Asking

if TYPE_CHECKING:
    from PIL import Image

    from tessera.hosts.session import Session


class ModelInterface(Protocol):
    """The interface of a model that agents work with.

    size  pixels of the longer side of an image as the model's vision tower reads it
    """

    size: int

    def ask(self, images: Sequence[Image.Image], question: str) -> str:
        """The answer to a question about some images, or none."""
        ...

    def yes(self, images: Sequence[Image.Image], question: str) -> float:
        """How probable a yes is as the answer's first word, in [0, 1], yes and no together being 1."""
        ...

    def losses(self, images: Sequence[Image.Image], question: str, answers: Sequence[str]) -> list[float]:
        """Mean negative log-probability per token of each of the answers."""
        ...


class Answered(Protocol):
    """What an agent comes to; more than the text is its own."""

    @property
    def text(self) -> str:
        """The answer."""
        ...


class Agent(ABC):
    """A model, a picture and a question -> an answer, after looking at the picture as often as the agent likes."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def answer(self, model: ModelInterface, image: Image.Image, question: str) -> Answered:
        """Answers in the model's place."""


class SessionModel:
    """A model with a session (`tessera.hosts.session.open_session`): Tessera's own or any of transformers.

    calls  how often the model has been run or asked
    """

    def __init__(
        self,
        session: Session,
        words: tuple[str, str] = ("Yes", "No"),
        size: int | None = None,
        max_new_tokens: int = 128,
    ) -> None:
        """words: yes and no as this model says them. Raises `UserError` if the processor does not say how large its images are,
        and no `size` is given."""
        self.session, self.max_new_tokens, self.calls = session, max_new_tokens, 0
        self.asking = Asking(session.model, session.processor, "this model")
        self.size = image_size(session.processor) if size is None else size
        ids = [self._ids(word)[:1] for word in words]
        if ids[0] == ids[1] or not all(ids):
            raise UserError(
                f"{words[0]!r} and {words[1]!r} begin with the same token, or with none; give this model's own words."
            )
        self.yes_and_no = [ids[0][0], ids[1][0]]

    def ask(self, images: Sequence[Image.Image], question: str) -> str:
        """See `ModelInterface`."""
        self.calls += 1
        self.session.show(images)
        return self.session.ask(question, self.max_new_tokens, _ignored).text

    def yes(self, images: Sequence[Image.Image], question: str) -> float:
        """See `ModelInterface`."""
        logits = self._logits(self._inputs(images, question))[-1, self.yes_and_no]
        return float(logits.float().softmax(-1)[0])

    def losses(self, images: Sequence[Image.Image], question: str, answers: Sequence[str]) -> list[float]:
        """See `ModelInterface`."""
        inputs = self._inputs(images, question)
        found = []
        for answer in answers:
            ids = torch.tensor([self._ids(answer)], device=inputs["input_ids"].device)
            if ids.shape[1] == 0:
                raise UserError(f"{answer!r} has no tokens, so it has no probability.")
            logits = self._logits(_with(inputs, ids))[-ids.shape[1] - 1 : -1]
            found.append(float(torch.nn.functional.cross_entropy(logits.float(), ids[0])))
        return found

    def _inputs(self, images: Sequence[Image.Image], question: str) -> dict[str, Any]:
        text = self.asking.render(self.asking.message(question, len(images)))
        return self.asking.inputs([text], [images])

    @torch.inference_mode()
    def _logits(self, inputs: dict[str, Any]) -> Tensor:
        """[T, V]."""
        self.calls += 1
        found: Tensor = self.session.model(**inputs, use_cache=False).logits[0]
        return found

    def _ids(self, text: str) -> list[int]:
        return list(self.asking.tokenizer(text, add_special_tokens=False)["input_ids"])


def image_size(processor: Any) -> int:
    """Longer side in pixels of an image as a processor hands it over. Raises `UserError` if it does not say."""
    found = getattr(processor, "image_processor", processor)
    for name in ("crop_size", "size"):
        size = getattr(found, name, None)
        if isinstance(size, int):
            return size
        sides = [_side(size, key) for key in ("height", "width", "longest_edge", "shortest_edge")]
        known = [side for side in sides if side]
        if known:
            return max(known[:2])
    raise UserError(f"{type(found).__name__} does not say how large the images are that it makes; give size=.")


def _side(size: Any, key: str) -> int:
    """An entry of a size, 0 if there is none: sizes are dictionaries, or objects that behave like some of one."""
    try:
        return int(size[key] or 0)
    except (KeyError, TypeError, IndexError):
        return 0


def _with(inputs: dict[str, Any], ids: Tensor) -> dict[str, Any]:
    """A prompt with the tokens ids [1, A] of an answer behind it."""
    fill = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    longer = {name: fill.get(name, torch.zeros_like(ids)) for name in PER_TOKEN if name in inputs}
    return {**inputs, **{name: torch.cat([inputs[name], more.to(inputs[name].dtype)], 1) for name, more in longer.items()}}


def _ignored(piece: str) -> None:
    """Nothing is done with the pieces of an answer."""
