"""How answers of the chat completions protocol are written."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tessera.serving.errors import ApiError

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer: its text, how it ended, what it cost."""

    text: str
    finish: Finish
    prompt_tokens: int
    tokens: int

    def usage(self) -> dict[str, int]:
        """The usage object."""
        total = self.prompt_tokens + self.tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens, "total_tokens": total}


class Writer:
    """Writes the objects of one answer; all carry its id."""

    def __init__(self, model: str, fingerprint: str, include_usage: bool = False) -> None:
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self._head = {"created": int(time.time()), "model": model, "system_fingerprint": fingerprint}
        self._usage = {"usage": None} if include_usage else {}

    def whole(self, done: Completion) -> dict[str, Any]:
        """The answer in one object."""
        message = {"role": "assistant", "content": done.text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": done.finish}
        return {"id": self.id, "object": "chat.completion", **self._head, "choices": [choice], "usage": done.usage()}

    def first(self) -> bytes:
        """The event that opens a stream."""
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def piece(self, text: str) -> bytes:
        """The event of a piece of text."""
        return self._chunk({"content": text})

    def last(self, done: Completion) -> bytes:
        """The events that end a stream: why it ended, the usage if it is wanted, and that this is all."""
        events = self._chunk({}, done.finish)
        if self._usage:
            events += _event({**self._chunk_head(), "choices": [], "usage": done.usage()})
        return events + b"data: [DONE]\n\n"

    @staticmethod
    def failed(error: ApiError) -> bytes:
        """The event of an error after the answer had begun."""
        return _event(error.body())

    def _chunk(self, delta: dict[str, Any], finish: Finish | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return _event({**self._chunk_head(), "choices": [choice], **self._usage})

    def _chunk_head(self) -> dict[str, Any]:
        return {"id": self.id, "object": "chat.completion.chunk", **self._head}


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + to_json(value) + b"\n\n"


def to_json(value: Any) -> bytes:
    """A JSON value as bytes; what a client's text cannot be encoded as is replaced."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")


def model_object(name: str, created: int) -> dict[str, Any]:
    """A model of `/v1/models`."""
    return {"id": name, "object": "model", "created": created, "owned_by": "tessera"}


def model_list(names: Sequence[str], created: int) -> dict[str, Any]:
    """The answer of `/v1/models`."""
    return {"object": "list", "data": [model_object(name, created) for name in names]}
