"""What a request of the chat completions protocol may say: pydantic reads it, and errors name the field in the protocol's words.

Fields that would change the answer and are not done here are refused; fields that would not are accepted.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, ValidationError
from pydantic_core import ErrorDetails
from pydantic_core.core_schema import ValidationInfo

from tessera.errors import nearest
from tessera.serving.errors import ApiError, invalid, too_large, unsupported
from tessera.serving.limits import Limits

MOST_STOPS, LONGEST_STOP = 4, 1000
MOST_MARKS = 1_000_000
"""Brackets and commas of a body; each may become an object in memory."""


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


# The fields as they come

_Role = Literal["system", "developer", "user", "assistant"]


class _Fields(BaseModel):
    model_config = ConfigDict(strict=True)


def _within(low: int, high: float = math.inf) -> AfterValidator:
    def check(value: float, info: ValidationInfo) -> float:
        if not low <= value <= high:  # not-a-number is nowhere
            bounds = f"{low} to {'...' if high == math.inf else high}"
            raise invalid(f"Invalid '{info.field_name}': {_short(value)} is not in {bounds}.", info.field_name)
        return value

    return AfterValidator(check)


class _Address(_Fields):
    url: str


class _Image(_Fields):
    type: Literal["image_url"]
    image_url: _Address


class _Text(_Fields):
    type: Literal["text"]
    text: str


_Parts = list[Annotated[_Text | _Image, Field(discriminator="type")]]


class _Turn(_Fields):
    role: _Role
    tool_calls: Any = None
    function_call: Any = None
    audio: Any = None
    content: Annotated[
        Annotated[str, Tag("text")] | Annotated[_Parts, Tag("parts")],
        Discriminator(lambda content: "text" if isinstance(content, str) else "parts"),
    ]


class _StreamOptions(_Fields):
    include_usage: bool | None = None


class _Request(_Fields):
    model: str
    messages: Annotated[list[_Turn], Field(min_length=1)]
    max_tokens: Annotated[int, _within(1)] | None = None
    max_completion_tokens: Annotated[int, _within(1)] | None = None
    temperature: Annotated[float, _within(0, 2)] = 0.0
    top_p: Annotated[float, _within(0, 1)] = 1.0
    seed: Annotated[int, _within(-(2**63), 2**63 - 1)] | None = None
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]],
        Field(max_length=MOST_STOPS),
        BeforeValidator(lambda stop: [stop] if isinstance(stop, str) else stop),
    ] = []
    n: Annotated[int, _within(1)] = 1
    stream: bool = False
    stream_options: _StreamOptions | None = None


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
_KNOWN = (*_Request.model_fields, *_NO_EFFECT, *_OFF)

# Reading


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
        if name not in _KNOWN:
            close = nearest(name, _KNOWN, 1)
            hint = f" Did you mean '{close[0]}'?" if close else ""
            raise invalid(f"Unrecognized request argument supplied: {name[:100]}.{hint}", name[:100], "unknown_parameter")
    for name, off in _OFF.items():
        if value.get(name) not in off:
            raise unsupported(f"'{name}' is not supported by this server; leave it out.", name)
    if value.get("model") is None:
        raise invalid(f"you must provide a model parameter; this server has '{model}'.", "model")
    try:
        found = _Request.model_validate({name: given for name, given in value.items() if given is not None})
    except ValidationError as error:
        raise _refused(error.errors(include_url=False)[0]) from None
    if found.model != model:
        told = f"The model `{found.model[:200]}` does not exist here; this server has `{model}`."
        raise ApiError(404, told, param="model", code="model_not_found")
    if found.n > 1:
        raise unsupported(f"'n' is {found.n}; this server gives one answer per request: leave it out, or ask again.", "n")
    if found.stream_options is not None and not found.stream:
        raise invalid("'stream_options' is only allowed with 'stream': true.", "stream_options")
    return ChatRequest(
        messages=_messages(found.messages, limits),
        tokens=_tokens(found, limits),
        # The smallest share of the likeliest tokens is the likeliest token.
        temperature=0.0 if found.top_p == 0 else found.temperature,
        top_p=found.top_p or 1.0,
        seed=found.seed,
        stop=tuple(dict.fromkeys(found.stop)),
        stream=found.stream,
        include_usage=found.stream_options is not None and bool(found.stream_options.include_usage),
    )


def _tokens(found: _Request, limits: Limits) -> int:
    old, new = found.max_tokens, found.max_completion_tokens
    name = "max_tokens" if new is None else "max_completion_tokens"
    if old is not None and new is not None and old != new:
        raise invalid("'max_tokens' and 'max_completion_tokens' say the same thing; give one of them.", "max_tokens")
    wanted = old if new is None else new
    if wanted is not None and wanted > limits.tokens:
        raise invalid(f"{name} is too large: {wanted}. This server gives at most {limits.tokens} completion tokens.", name)
    return limits.tokens if wanted is None else wanted


def _messages(turns: list[_Turn], limits: Limits) -> tuple[Message, ...]:
    """The conversation, if its images and texts are within the limits."""
    messages = []
    characters = images = 0
    for place, turn in enumerate(turns):
        wanted = {"tool_calls": turn.tool_calls, "function_call": turn.function_call, "audio": turn.audio}
        for param in (f"messages[{place}].{name}" for name, value in wanted.items() if value):
            raise unsupported(f"'{param}' is not supported by this server.", param)
        where = f"messages[{place}].content"
        parts = [] if isinstance(turn.content, str) else list(enumerate(turn.content))
        texts = [(where, turn.content)] if isinstance(turn.content, str) else []
        texts += [(f"{where}[{index}].text", part.text) for index, part in parts if isinstance(part, _Text)]
        shown = [(f"{where}[{index}]", part.image_url.url) for index, part in parts if isinstance(part, _Image)]
        for param, text in texts:
            characters += len(text)
            if characters > limits.characters:
                raise invalid(f"The request holds more than {limits.characters:,} characters, the limit of this server.", param)
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise invalid(f"'{param}' holds half a character (a surrogate escape without its pair).", param)
        for param, _ in shown:
            images += 1
            if turn.role != "user":
                raise invalid("Images may stand in messages of the user only.", param)
            if images > limits.images:
                raise invalid(f"The request holds more than {limits.images} images, the limit of this server.", param)
        role = "system" if turn.role == "developer" else turn.role
        sources = tuple(ImagePart(url, f"{param}.image_url.url") for param, url in shown)
        messages.append(Message(role, " ".join(text for _, text in texts if text), sources))
    if messages[-1].role != "user":
        raise invalid("The last message must be the user's: it is what is answered.", f"messages[{len(messages) - 1}].role")
    return tuple(messages)


# What is wrong

_WANTED = {
    "messages": "a list of messages",
    "content": "a string or a list of parts",
    "text": "a string",
    "image_url": 'an object like {"url": "data:image/png;base64,..."}',
    "url": "a string",
    "stop": "a string or a list of strings",
    "string_type": "a string",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
}
"""By the name of the field, or by pydantic's for the error."""


def _refused(error: ErrorDetails) -> ApiError:
    """What pydantic found, as OpenAI's clients know it."""
    kind, where = error["type"], list(error["loc"])
    value: Any = None if kind == "missing" else error["input"]
    if where[2:3] == ["content"]:  # behind it, and behind the place of a part, stands the kind that was tried
        del where[5:6], where[3:4]
    elif where[0] == "stop":
        del where[1:]
    param = str(where[0]) + "".join(f"[{name}]" if isinstance(name, int) else f".{name}" for name in where[1:])
    if param == "messages" and kind == "missing":
        return invalid("Missing required parameter: 'messages'.", param, "missing_required_parameter")
    if param == "messages" and kind == "too_short":
        return invalid("[] is too short - 'messages' must hold at least one message.", param, "empty_array")
    if kind in ("too_long", "string_too_short", "string_too_long"):
        return invalid(f"'stop' takes at most {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters.", param)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        told = f"'{param}.type' must be 'text' or 'image_url', not {_short(value.get('type'))}."
        return invalid(told, f"{param}.type", "invalid_value")
    if where[-1] == "role":
        return invalid(f"'{param}' must be one of {', '.join(map(repr, get_args(_Role)))}, not {_short(value)}.", param)
    wanted = _WANTED.get(str(where[-1])) or _WANTED.get(kind, "an object")
    return invalid(f"Invalid type for '{param}': expected {wanted}, but got {_kind(value)} instead.", param, "invalid_type")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
