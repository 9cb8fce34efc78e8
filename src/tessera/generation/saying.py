"""Rows of tokens to text: pieces for streaming, stop strings, and the final answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from tessera.generation.generate import GeneratedAnswer
from tessera.generation.loop import ChosenTokens
from tessera.generation.request import Request
from tessera.generation.steps import Steps

_HALF = "\ufffd"
"""Half a character of a byte-level tokenizer reads as this."""


class Saying:
    """One row of a generation, its stop strings included.

    tokens    chosen so far, without an end token
    finished  whether the model ended it, or a stop string
    text      what is said for sure: without a stop string, what follows it, and what could be the beginning of one
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], ends: frozenset[int]) -> None:
        self._tokenizer, self._stops, self._ends = tokenizer, [stop for stop in stops if stop], ends
        self.tokens: list[int] = []
        self.finished = False
        self.text = ""

    def add(self, token: int, look: bool) -> bool:
        """Another token; whether a stop string has come with it. look: whether `text` is wanted up to date."""
        if token in self._ends:
            self.finished = True
            return False
        self.tokens.append(token)
        if not look and not self._stops:
            return False
        text = self._decoded()
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.text = text[: min(found)].rstrip()
            self.finished = True
            return True
        if not text.endswith(_HALF):
            self.text = text[: len(text) - self._doubtful(text)].rstrip()
        return False

    def end(self, stopped: bool) -> None:
        """No more tokens come: nothing is held back any longer."""
        if not stopped:
            self.text = self._decoded()

    def _decoded(self) -> str:
        text: str = self._tokenizer.decode(self.tokens, skip_special_tokens=True)
        return text.strip()

    def _doubtful(self, text: str) -> int:
        """How many of the last characters may begin a stop string."""
        longest = min(max((len(stop) for stop in self._stops), default=1) - 1, len(text))
        return next((n for n in range(longest, 0, -1) if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)


def say(
    request: Request,
    steps: Steps,
    tokenizer: Any,
    seed: int | None,
    stops: Sequence[str],
    answers: list[GeneratedAnswer],
    stream: bool = False,
) -> Iterator[list[str]]:
    """Goes on until every row has ended; then `answers` holds one answer per row. With `stream`, yields the text of all rows
    after every step."""
    choices = ChosenTokens(request, steps, seed, known=True)
    rows = [Saying(tokenizer, stops, request.ends) for _ in choices.open]
    stopped = [False] * len(rows)
    for tokens in choices:
        for number, token in enumerate(tokens.tolist()):
            if rows[number].finished or len(rows[number].tokens) >= request.limit:
                continue
            if rows[number].add(token, stream):
                stopped[number] = True
                choices.close(number)
        if stream:
            yield [row.text for row in rows]
        if not any(choices.open):
            break
    for row, was in zip(rows, stopped, strict=True):
        row.end(was)
    if stream:
        yield [row.text for row in rows]
    known = choices.log_probabilities
    assert isinstance(known, torch.Tensor)
    answers += [
        GeneratedAnswer(row.text, tuple(row.tokens), math.exp(log_probability), row.finished)
        for row, log_probability in zip(rows, known.tolist(), strict=True)
    ]
