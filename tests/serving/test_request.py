"""What a request may say, field by field; the limits."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.errors import UserError
from tessera.serving.answer import to_json
from tessera.serving.errors import ApiError
from tessera.serving.limits import Limits
from tessera.serving.request import ChatRequest, read_json, read_request

LIMITS = Limits(images=2, characters=100, tokens=30)
USER: dict[str, Any] = {"role": "user", "content": "dog"}


def read(**fields: Any) -> ChatRequest:
    return read_request({"model": "m", "messages": [USER], **fields}, "m", LIMITS)


def content(*parts: Any) -> list[Any]:
    return [{"role": "user", "content": list(parts)}]


def image(url: Any = "data:,x") -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, "detail": "low"}}


def test_a_request_by_its_defaults() -> None:
    found = read()
    assert (found.tokens, found.temperature, found.top_p, found.seed, found.stop) == (30, 0.0, 1.0, None, ())
    assert not found.stream and not found.include_usage
    assert found.messages[0].text == "dog"


def test_a_request_with_everything() -> None:
    found = read(
        messages=[
            {"role": "system", "content": "Be short."},
            {"role": "user", "content": [{"type": "text", "text": "What"}, image("a"), {"type": "text", "text": "is it?"}]},
            {"role": "assistant", "content": "A dog.", "refusal": None},
            {"role": "user", "content": [image("b")]},
        ],
        max_completion_tokens=7, temperature=1, top_p=0.5, seed=-3, stop=["x", "y", "x"], n=1, stream=True,
        stream_options={"include_usage": True}, user="u", logprobs=False, response_format={"type": "text"}, tools=[],
    )  # fmt: skip
    assert [m.role for m in found.messages] == ["system", "user", "assistant", "user"]
    assert found.messages[1].text == "What is it?"
    assert [(i.url, i.param) for i in found.images] == [
        ("a", "messages[1].content[1].image_url.url"),
        ("b", "messages[3].content[0].image_url.url"),
    ]
    assert (found.tokens, found.temperature, found.top_p, found.seed, found.stop) == (7, 1.0, 0.5, -3, ("x", "y"))
    assert found.stream and found.include_usage
    assert read(top_p=0, temperature=1).temperature == 0
    assert read(stop="end").stop == ("end",)
    assert read(max_tokens=3).tokens == read(max_tokens=3, max_completion_tokens=3).tokens == 3


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"model": None}, "model", "must provide a model parameter; this server has 'm'"),
        ({"model": 3}, "model", "expected a string"),
        ({"messages": None}, "messages", "Missing required parameter"),
        ({"messages": "hi"}, "messages", "expected a list of messages, but got a string"),
        ({"messages": []}, "messages", "too short"),
        ({"messages": ["hi"]}, "messages[0]", "expected an object, but got a string"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role", "'user', 'assistant', not 'robot'"),
        ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role", "not ['user']"),
        ({"messages": [{"role": "\ud800", "content": "hi"}]}, "messages[0].role", "must be one of 'system'"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "expected a string or a list of parts, but got null"),
        ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "messages[1].role", "last message must be the user's"),
        ({"messages": [{**USER, "tool_calls": [1]}]}, "messages[0].tool_calls", "not supported"),
        ({"messages": content(3)}, "messages[0].content[0]", "expected an object, but got a number"),
        ({"messages": content({"type": "text"})}, "messages[0].content[0].text", "expected a string"),
        ({"messages": content({"text": "hi"})}, "messages[0].content[0].type", "must be 'text' or 'image_url', not None"),
        ({"messages": content({"type": "input_audio"})}, "messages[0].content[0].type", "not 'input_audio'"),
        ({"messages": content({"type": "image_url"})}, "messages[0].content[0].image_url", "data:image/png;base64"),
        ({"messages": content({"type": "image_url", "image_url": "x"})}, "messages[0].content[0].image_url", "object like"),
        ({"messages": content(image(), image(), image())}, "messages[0].content[2]", "more than 2 images"),
        ({"messages": [{"role": "system", "content": [image()]}, USER]}, "messages[0].content[0]", "messages of the user only"),
        ({"messages": [{"role": "user", "content": "x" * 101}]}, "messages[0].content", "more than 100 characters"),
        ({"messages": [{"role": "user", "content": "a\ud800"}]}, "messages[0].content", "half a character"),
        ({"max_tokens": 0}, "max_tokens", "0 is not in 1 to ..."),
        ({"max_tokens": 31}, "max_tokens", "too large: 31. This server gives at most 30"),
        ({"max_completion_tokens": 99}, "max_completion_tokens", "too large"),
        ({"max_tokens": 2, "max_completion_tokens": 3}, "max_tokens", "give one of them"),
        ({"max_tokens": True}, "max_tokens", "expected a whole number, but got a boolean"),
        ({"max_tokens": 1.5}, "max_tokens", "expected a whole number"),
        ({"temperature": 2.1}, "temperature", "2.1 is not in 0 to 2"),
        ({"temperature": "hot"}, "temperature", "expected a number, but got a string"),
        ({"temperature": float("nan")}, "temperature", "nan is not in 0 to 2"),
        ({"temperature": "hot", "top_p": 0}, "temperature", "expected a number"),
        ({"top_p": -0.1}, "top_p", "not in 0 to 1"),
        ({"seed": 2**63}, "seed", "not in"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": [""]}, "stop", "1 to 1000 characters"),
        ({"stop": 3}, "stop", "expected a string or a list"),
        ({"n": 2}, "n", "one answer per request"),
        ({"stream": "yes"}, "stream", "expected true or false"),
        ({"stream_options": {}}, "stream_options", "only allowed with"),
        ({"stream": True, "stream_options": []}, "stream_options", "expected an object"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage", "expected true or false"),
        ({"logprobs": True}, "logprobs", "not supported"),
        ({"tools": [{}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"max_token": 3}, "max_token", "Unrecognized request argument supplied: max_token. Did you mean 'max_tokens'?"),
        ({"x" * 500: 3}, "x" * 100, "Unrecognized"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str, says: str) -> None:
    with pytest.raises(ApiError) as caught:
        read(**fields)
    error = caught.value
    assert (error.status, error.kind, error.param) == (400, "invalid_request_error", param)
    assert says in error.message
    assert len(error.message) < 400
    json.loads(to_json(error.body()))


NAMES = st.sampled_from(["type", "text", "image_url", "url", "role"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner),
    max_leaves=8,
)
FIELDS = ("messages", "max_tokens", "temperature", "top_p", "seed", "stop", "n", "stream", "stream_options", "tools", "user")


def refusal(make: Callable[[], Any]) -> ApiError | None:
    try:
        make()
    except ApiError as error:
        return error
    return None


@given(st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_whatever_comes_is_a_request_or_an_error_object(fields: dict[str, Any]) -> None:
    error = refusal(lambda: read_request({"model": "m", **fields}, "m", LIMITS))
    if error is not None:
        assert error.status == 400
        json.loads(to_json(error.body()))


@given(st.binary(max_size=40))
def test_whatever_the_body_is(body: bytes) -> None:
    error = refusal(lambda: read_json(body))
    assert error is None or error.status == 400


def test_limits_are_above_zero() -> None:
    with pytest.raises(UserError, match="the limit images must be above 0, not 0"):
        Limits(images=0)
