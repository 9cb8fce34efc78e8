"""The class that lmms-eval makes; see `tessera.evaluation.lmms`. Importing this imports lmms-eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from lmms_eval.api.model import lmms

from tessera.errors import UserError, unknown
from tessera.evaluation.lmms import ConversationModel

_OF_LMMS_EVAL = ("max_batch_size", "device")
"""Given by lmms-eval's command line; Tessera batches by memory and picks the device itself."""


class TesseraLmms(lmms):
    """A model of Tessera, or any transformers model with plugged parts."""

    is_simple = False

    def __init__(self, pretrained: str = "nano", plug: str = "", batch_size: int | str = 1, **settings: Any) -> None:
        """plug: parts as `--plug` takes them, several separated by ; (the whole in quotes if it holds a comma).

        Raises `UserError` for unknown arguments, models and parts.
        """
        super().__init__()
        for name in settings:
            if name not in _OF_LMMS_EVAL:
                raise unknown("model argument:", name, ("pretrained", "plug", "batch_size"))
        self.batch_size = int(batch_size) if str(batch_size).isdecimal() else 1
        self.asked = ConversationModel(str(pretrained), str(plug))

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers, in the order of the requests."""
        answers = [""] * len(requests)
        for places, settings in _portions(requests, self.batch_size):
            conversations = [self._conversation(requests[place]) for place in places]
            for place, answer in zip(places, self.asked.answer(conversations, settings), strict=True):
                answers[place] = answer.text
                self.cache_hook.add_partial("generate_until", (requests[place].args[0], settings), answer.text)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> NoReturn:
        """Raises `UserError`: tasks that compare probabilities of given texts are not supported."""
        raise UserError(
            "this task compares the probabilities of given answers; Tessera's adapter runs tasks that generate answers."
        )

    def generate_until_multi_round(self, requests: Sequence[Any]) -> NoReturn:
        """Raises `UserError`: tasks whose next question depends on the last answer are not supported."""
        raise UserError("this task asks in rounds that depend on the answers; Tessera's adapter runs tasks of one round.")

    def clean(self) -> None:
        """The model is given back when the evaluation is over."""
        self.asked.close()
        del self.asked

    def _conversation(self, request: Any) -> Any:
        _, to_messages, _, place, task, split = request.args
        return to_messages(self.task_dict[task][split][place])


def _portions(requests: Sequence[Any], size: int) -> list[tuple[list[int], Any]]:
    """(places of requests that are asked together, their settings): at most `size`, of equal settings."""
    groups: dict[str, tuple[list[int], Any]] = {}
    for place, request in enumerate(requests):
        groups.setdefault(repr(sorted(request.args[2].items())), ([], request.args[2]))[0].append(place)
    return [
        (places[begin : begin + size], settings) for places, settings in groups.values() for begin in range(0, len(places), size)
    ]
