"""Parts that wrap a model and answer questions in its place: image cropping, agents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tessera.evaluation.answering import Answer, Generates, HasText, Row

if TYPE_CHECKING:
    from tessera.hosts.agent import Agent, ModelInterface
    from tessera.hosts.pixels import Pixels


class ThroughViews:
    """A model is shown the views that a part of socket `pixels` makes of every picture, in their order."""

    def __init__(self, model: Generates, part: Pixels) -> None:
        self.model, self.part = model, part

    def answer_batch(self, rows: Sequence[Row], max_new_tokens: int) -> Sequence[Sequence[HasText]]:
        """See `Generates`."""
        seen = [([view.image for image in images for view in self.part.views(image)], asked) for images, asked in rows]
        found: list[Sequence[HasText]] = []
        for row in seen:  # pictures of other shapes have other numbers of views
            found += self.model.answer_batch([row], max_new_tokens)
        return found


class ByAgent:
    """A part of socket `agents` answers, with a model as its eye. Rows hold one picture each."""

    def __init__(self, eye: ModelInterface, part: Agent) -> None:
        self.eye, self.part = eye, part

    def answer_batch(self, rows: Sequence[Row], max_new_tokens: int) -> list[list[HasText]]:
        """See `Generates`."""
        return [[Answer(self.part.answer(self.eye, images[0], question).text) for question in asked] for images, asked in rows]
