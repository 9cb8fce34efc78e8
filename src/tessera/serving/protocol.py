"""The chat completions protocol: what a request may say, and how answers are written.

Fields that would change the answer and are not done here are refused; fields that would not are accepted.
"""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tessera.errors import nearest
from tessera.serving.errors import ApiError, invalid, too_large, unsupported
from tessera.serving.limits import Limits

MOST_STOPS = 4
MOST_MARKS = 1_000_000
"""Brackets and commas of a body; each may become an object in memory."""

Finish = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class ImagePart:
    """An image of a message: its address (a data URL, mostly) and where it stands, for error messages."""

    url: str
    param: str


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Its text parts are joined by spaces, as chat templates of transformers do."""

    role: Literal["system", "user", "assistant"]
    text: str
    images: tuple[ImagePart, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """A request that is well-formed and within the limits. Greedy unless a temperature is asked for."""

    messages: tuple[Message, ...]
    tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False

    @property
    def images(self) -> list[ImagePart]:
        """All images, in order."""
        return [image for message in self.messages for image in message.images]


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


# Reading

_READ = (
    "messages", "model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stop", "n", "stream",
    "stream_options",
)  # fmt: skip
_NO_EFFECT = (
    "user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention",
)  # fmt: skip
_OFF: dict[str, tuple[Any, ...]] = {
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "logit_bias": (None, {}),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None, "none"),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
"""What is not done here, with the values that mean that it is not wanted."""
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def read_json(body: bytes) -> Any:
    """The value of a body. Raises `ApiError` for what is no JSON, or would unfold to millions of objects."""
    if body.count(b",") + body.count(b"[") + body.count(b"{") > MOST_MARKS:
        raise too_large(f"The body holds more than {MOST_MARKS:,} values.")
    try:
        return json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        told = str(error) if isinstance(error, json.JSONDecodeError) else "it is no UTF-8 text, or nested too deep"
        raise invalid(f"We could not parse the JSON body of your request ({told}).") from None


def read_request(value: Any, model: str, limits: Limits) -> ChatRequest:
    """The request in a body's JSON value. Raises `ApiError` for anything that is wrong with it."""
    if not isinstance(value, dict):
        raise invalid(f"The body must be a JSON object, not {_kind(value)}.")
    for name in value:
        if name not in _READ and name not in _NO_EFFECT and name not in _OFF:
            close = nearest(name, (*_READ, *_NO_EFFECT, *_OFF), 1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise invalid(f"Unrecognized request argument supplied: {name[:100]}.{hint}", name[:100], "unknown_parameter")
    for name, off in _OFF.items():
        if value.get(name) not in off:
            raise unsupported(f"'{name}' is not supported by this server; leave it out.", name)
    _check_model(value, model)
    count = _whole(value, "n", 1, None)
    if count is not None and count > 1:
        raise unsupported(f"'n' is {count}; this server gives one answer per request: leave it out, or ask again.", "n")
    stream = _flag(value, "stream")
    options = value.get("stream_options")
    if options is not None and not stream:
        raise invalid("'stream_options' is only allowed with 'stream': true.", "stream_options")
    if options is not None and not isinstance(options, dict):
        raise _wrong("stream_options", "an object", options)
    top_p = _number(value, "top_p", 0, 1, 1.0)
    return ChatRequest(
        messages=_messages(value.get("messages"), limits),
        tokens=_tokens(value, limits),
        # The smallest share of the likeliest tokens is the likeliest token.
        temperature=0.0 if top_p == 0 else _number(value, "temperature", 0, 2, 0.0),
        top_p=top_p or 1.0,
        seed=_whole(value, "seed", -(2**63), 2**63 - 1),
        stop=_stop(value.get("stop")),
        stream=stream,
        include_usage=_flag(options or {}, "include_usage"),
    )


def _check_model(value: Mapping[str, Any], model: str) -> None:
    asked = value.get("model")
    if asked is None:
        raise invalid(f"you must provide a model parameter; this server has '{model}'.", "model")
    if not isinstance(asked, str):
        raise _wrong("model", "a string", asked)
    if asked != model:
        told = f"The model `{asked[:200]}` does not exist here; this server has `{model}`."
        raise ApiError(404, told, param="model", code="model_not_found")


def _tokens(value: Mapping[str, Any], limits: Limits) -> int:
    old, new = _whole(value, "max_tokens", 1, None), _whole(value, "max_completion_tokens", 1, None)
    name = "max_tokens" if new is None else "max_completion_tokens"
    if old is not None and new is not None and old != new:
        raise invalid("'max_tokens' and 'max_completion_tokens' say the same thing; give one of them.", "max_tokens")
    wanted = old if new is None else new
    if wanted is not None and wanted > limits.tokens:
        raise invalid(f"{name} is too large: {wanted}. This server gives at most {limits.tokens} completion tokens.", name)
    return limits.tokens if wanted is None else wanted


def _stop(value: Any) -> tuple[str, ...]:
    found = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(s, str) for s in found):
        raise _wrong("stop", "a string or a list of strings", value)
    if len(found) > MOST_STOPS or any(not 0 < len(s) <= 1000 for s in found):
        raise invalid(f"'stop' takes at most {MOST_STOPS} strings of 1 to 1000 characters.", "stop")
    return tuple(dict.fromkeys(found))


def _messages(value: Any, limits: Limits) -> tuple[Message, ...]:
    if value is None:
        raise invalid("Missing required parameter: 'messages'.", "messages", "missing_required_parameter")
    if not isinstance(value, list):
        raise _wrong("messages", "a list of messages", value)
    if not value:
        raise invalid("[] is too short - 'messages' must hold at least one message.", "messages", "empty_array")
    budget = _Budget(limits)
    messages = tuple(_message(entry, f"messages[{place}]", budget) for place, entry in enumerate(value))
    if messages[-1].role != "user":
        raise invalid("The last message must be the user's: it is what is answered.", f"messages[{len(messages) - 1}].role")
    return messages


@dataclass(slots=True)
class _Budget:
    """What is left of the limits on images and text."""

    limits: Limits
    images: int = field(default=0)
    characters: int = field(default=0)

    def image(self, param: str) -> None:
        self.images += 1
        if self.images > self.limits.images:
            raise invalid(f"The request holds more than {self.limits.images} images, the limit of this server.", param)

    def text(self, text: str, param: str) -> str:
        self.characters += len(text)
        if self.characters > self.limits.characters:
            raise invalid(f"The request holds more than {self.limits.characters:,} characters, the limit of this server.", param)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise invalid(f"'{param}' holds half a character (a surrogate escape without its pair).", param)
        return text


def _message(value: Any, param: str, budget: _Budget) -> Message:
    if not isinstance(value, dict):
        raise _wrong(param, "an object", value)
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(f"'{param}.role' must be one of {', '.join(map(repr, _ROLES))}, not {_short(role)}.", f"{param}.role")
    for name in ("tool_calls", "function_call", "audio"):
        if value.get(name):
            raise unsupported(f"'{param}.{name}' is not supported by this server.", f"{param}.{name}")
    content, where = value.get("content"), f"{param}.content"
    if isinstance(content, str):
        return Message(_role(role), budget.text(content, where))
    if not isinstance(content, list):
        raise _wrong(where, "a string or a list of parts", content)
    texts, images = [], []
    for place, part in enumerate(content):
        found = _part(part, f"{where}[{place}]", role, budget)
        if isinstance(found, ImagePart):
            images.append(found)
        else:
            texts.append(found)
    return Message(_role(role), " ".join(text for text in texts if text), tuple(images))


def _role(name: str) -> Any:
    return _ROLES[name]


def _part(value: Any, param: str, role: str, budget: _Budget) -> str | ImagePart:
    if not isinstance(value, dict):
        raise _wrong(param, "an object", value)
    kind = value.get("type")
    if kind == "text":
        if not isinstance(value.get("text"), str):
            raise _wrong(f"{param}.text", "a string", value.get("text"))
        return budget.text(value["text"], f"{param}.text")
    if kind != "image_url":
        message = f"'{param}.type' must be 'text' or 'image_url', not {_short(kind)}."
        raise invalid(message, f"{param}.type", "invalid_value")
    if role != "user":
        raise invalid("Images may stand in messages of the user only.", param)
    image = value.get("image_url")
    url = image.get("url") if isinstance(image, dict) else None
    if not isinstance(url, str):
        raise _wrong(f"{param}.image_url", 'an object like {"url": "data:image/png;base64,..."}', image)
    budget.image(param)
    return ImagePart(url, f"{param}.image_url.url")


def _flag(value: Mapping[str, Any], name: str) -> bool:
    found = value.get(name)
    if found is not None and not isinstance(found, bool):
        raise _wrong(name, "true or false", found)
    return bool(found)


def _whole(value: Mapping[str, Any], name: str, low: int, high: int | None) -> int | None:
    found = value.get(name)
    if found is None:
        return None
    if not isinstance(found, int) or isinstance(found, bool):
        raise _wrong(name, "a whole number", found)
    if found < low or (high is not None and found > high):
        raise invalid(f"Invalid '{name}': {_short(found)} is not in {low} to {'...' if high is None else high}.", name)
    return found


def _number(value: Mapping[str, Any], name: str, low: float, high: float, default: float) -> float:
    found = value.get(name)
    if found is None:
        return default
    if not isinstance(found, int | float) or isinstance(found, bool):
        raise _wrong(name, "a number", found)
    if not (low <= found <= high and math.isfinite(found)):
        raise invalid(f"Invalid '{name}': {_short(found)} is not in {low:g} to {high:g}.", name)
    return float(found)


def _wrong(name: str, wanted: str, found: Any) -> ApiError:
    return invalid(f"Invalid type for '{name}': expected {wanted}, but got {_kind(found)} instead.", name, "invalid_type")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."


# Writing


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
