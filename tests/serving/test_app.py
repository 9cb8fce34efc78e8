"""The application over a model that says what it is told: answers, streams, errors, limits, the queue, cancellation."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from tests.patience import SECONDS
from tests.serving.running import Scripted, call, client, post, running, user

from tessera.serving.app import Settings
from tessera.serving.fetch import Allowed
from tessera.serving.limits import Limits

ASK: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "dog"}]}


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with running(Scripted(), Settings(model="m", fingerprint="fp_1", limits=Limits(body=20_000, tokens=50))) as port:
        yield port


def until(true: Callable[[], bool]) -> None:
    """Waits for something that another thread does."""
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def metric(port: int, name: str) -> float:
    """One value of /metrics."""
    lines = call(port, "GET", "/metrics")[1].splitlines()
    return float(next((line.rpartition(" ")[2] for line in lines if line.startswith(f"{name} ")), 0))


# Answers


def test_the_official_client_gets_an_answer(port: int) -> None:
    answer = client(port).chat.completions.create(model="m", messages=[{"role": "user", "content": "dog"}])
    [choice] = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason, choice.index) == ("assistant", "a b c", "stop", 0)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 3, 8)
    assert (answer.object, answer.model, answer.system_fingerprint) == ("chat.completion", "m", "fp_1")
    assert answer.id.startswith("chatcmpl-")
    assert abs(answer.created - time.time()) < 60


@pytest.mark.parametrize("usage", [True, False])
def test_a_stream_is_role_pieces_finish_and_usage(port: int, usage: bool) -> None:
    options: Any = {"stream_options": {"include_usage": True}} if usage else {}
    messages: Any = ASK["messages"]
    chunks = list(client(port).chat.completions.create(model="m", messages=messages, stream=True, **options))
    deltas = [c.choices[0].delta for c in chunks if c.choices]
    assert [d.role for d in deltas] == ["assistant", None, None, None, None]
    assert [d.content for d in deltas] == ["", "a", " b", " c", None]
    assert [c.choices[0].finish_reason for c in chunks if c.choices] == [None] * 4 + ["stop"]
    assert len({c.id for c in chunks}) == 1
    assert {c.object for c in chunks} == {"chat.completion.chunk"}
    if usage:
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None and chunks[-1].usage.total_tokens == 8
    assert [c.usage for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert len(chunks) == (6 if usage else 5)


def test_a_stream_on_the_wire(port: int) -> None:
    status, text, headers = call(
        port, "POST", "/v1/chat/completions", json.dumps({**ASK, "stream": True}).encode(), {"Content-Type": "application/json"}
    )
    assert status == 200
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert text.endswith("\n\ndata: [DONE]\n\n")
    assert all(event.startswith("data: ") for event in text.strip().split("\n\n"))
    assert '"usage"' not in text


def test_the_models(port: int) -> None:
    [model] = client(port).models.list().data
    assert (model.id, model.object, model.owned_by) == ("m", "model", "tessera")
    assert client(port).models.retrieve("m") == model
    with pytest.raises(openai.NotFoundError) as caught:
        client(port).models.retrieve("n/o")
    assert caught.value.code == "model_not_found"


def test_health_and_metrics(port: int) -> None:
    assert call(port, "GET", "/healthz")[1] == {"status": "ok", "model": "m"}
    before = metric(port, 'tessera_requests_total{path="/v1/chat/completions",status="200"}')
    tokens = metric(port, 'tessera_tokens_total{direction="out"}')
    timed = metric(port, 'tessera_request_seconds_bucket{le="+Inf"}')
    post(port, ASK)
    post(port, b"{")
    until(lambda: metric(port, "tessera_request_seconds_count") == timed + 2)
    assert metric(port, 'tessera_requests_total{path="/v1/chat/completions",status="200"}') == before + 1
    assert metric(port, 'tessera_requests_total{path="/v1/chat/completions",status="400"}') >= 1
    assert metric(port, 'tessera_tokens_total{direction="out"}') == tokens + 3
    assert metric(port, "tessera_queue_length") == 0
    _, text, headers = call(port, "GET", "/metrics")
    assert headers["content-type"].startswith("text/plain; version=0.0.4")
    buckets = [float(line.rpartition(" ")[2]) for line in text.splitlines() if "_bucket" in line]
    assert buckets == sorted(buckets)
    names = {line.split("{")[0].split(" ")[0] for line in text.splitlines() if not line.startswith("#")}
    assert {name.removesuffix(end) for name in names for end in ("_bucket", "_sum", "_count") if name.endswith(end)} == {
        "tessera_request_seconds"
    }


# Errors


def assert_error(found: Any) -> dict[str, Any]:
    """The error object, whole and nothing else."""
    assert list(found) == ["error"]
    error: dict[str, Any] = found["error"]
    assert list(error) == ["message", "type", "param", "code"]
    assert error["message"] and error["type"]
    return error


@pytest.mark.parametrize(
    ("body", "status", "param", "says"),
    [
        (b"{", 400, None, "could not parse the JSON body"),
        (b"", 400, None, "could not parse"),
        (b"\xff\xfe", 400, None, "no UTF-8"),
        (b"[" * 9000, 400, None, "nested too deep"),
        (b"[]", 400, None, "must be a JSON object, not a list"),
        (b'{"model": 1e999}', 400, "model", "expected a string"),
    ],
)
def test_bodies_that_are_no_requests(port: int, body: bytes, status: int, param: str | None, says: str) -> None:
    got, found = post(port, body)
    error = assert_error(found)
    assert (got, error["type"], error["param"]) == (status, "invalid_request_error", param)
    assert says in error["message"]


def test_the_client_raises_what_the_server_says(port: int) -> None:
    ask = client(port).chat.completions.create
    with pytest.raises(openai.BadRequestError) as bad:
        ask(model="m", messages=[])
    assert (bad.value.param, bad.value.code, bad.value.type) == ("messages", "empty_array", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as missing:
        ask(model="gpt", messages=ASK["messages"])
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="max_tokens is too large: 51"):
        ask(model="m", messages=ASK["messages"], max_tokens=51)


def test_paths_methods_and_types_that_are_none(port: int) -> None:
    for method, path, status, code in (
        ("GET", "/v1/nothing", 404, "unknown_url"),
        ("POST", "/v1/embeddings", 404, "unknown_url"),
        ("GET", "/docs", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_supported"),
        ("DELETE", "/v1/models", 405, "method_not_supported"),
    ):
        got, found, _ = call(port, method, path, b"x" * 500)
        assert (got, assert_error(found)["code"]) == (status, code)
    got, found = post(port, ASK, **{"Content-Type": "text/plain"})
    assert (got, assert_error(found)["code"]) == (415, "unsupported_media_type")


def test_a_body_over_the_limit_is_refused_and_the_client_can_read_why(port: int) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client(port).chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * 60_000}])
    assert (caught.value.status_code, caught.value.code) == (413, "request_too_large")
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)) as connection:
        chunks = (b"x" * 1000 for _ in range(50))  # no length is told
        connection.request("POST", "/v1/chat/completions", chunks, {"Content-Type": "application/json"}, encode_chunked=True)
        answer = connection.getresponse()
        assert answer.status == 413
        assert_error(json.loads(answer.read()))


def test_a_body_that_unfolds_to_a_million_values_is_refused() -> None:
    with running(Scripted(), Settings(model="m")) as port:
        status, found = post(port, b"[" + b"0," * 1_000_001 + b"0]")
    assert (status, assert_error(found)["code"]) == (413, "request_too_large")


def test_a_fault_is_an_error_object_and_the_server_goes_on() -> None:
    def broken(*_: Any) -> Any:
        raise ZeroDivisionError("secret")

    with running(broken, Settings(model="m")) as port:
        for _ in range(2):
            status, found = post(port, ASK)
            assert status == 500
            assert assert_error(found)["type"] == "server_error"
            assert "secret" not in json.dumps(found)
        assert call(port, "GET", "/healthz")[0] == 200


def test_an_error_after_the_stream_began_is_an_event() -> None:
    steps = iter([None, None])
    with running(Scripted(step=lambda: next(steps)), Settings(model="m")) as port:
        stream = client(port).chat.completions.create(model="m", messages=ASK["messages"], stream=True)
        with pytest.raises(openai.APIError, match="The server had an error"):
            for _ in stream:
                pass


# Tokens


def test_a_token_is_wanted_everywhere_but_for_the_health() -> None:
    with running(Scripted(), Settings(model="m", token="s3cret-token")) as port:
        assert client(port, "s3cret-token").chat.completions.create(model="m", messages=ASK["messages"]).choices
        with pytest.raises(openai.AuthenticationError) as caught:
            client(port, "s3cret-tokem").chat.completions.create(model="m", messages=ASK["messages"])
        assert caught.value.code == "invalid_api_key"
        for path in ("/v1/models", "/metrics", "/nothing"):
            status, found, headers = call(port, "GET", path)
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert "didn't provide an API key" in assert_error(found)["message"]
        assert post(port, ASK, Authorization="Basic s3cret-token")[0] == 401
        assert post(port, b"x" * 100_000)[0] == 401
        assert call(port, "GET", "/healthz")[0] == 200


# The queue


def gated(**limits: Any) -> tuple[Scripted, threading.Semaphore, Settings]:
    """A model that takes a step for every release of the gate."""
    gate = threading.Semaphore(0)
    return Scripted(step=lambda: gate.acquire(timeout=SECONDS)), gate, Settings(model="m", limits=Limits(**limits))


def test_more_than_the_queue_holds_is_told_to_come_again() -> None:
    model, gate, settings = gated(waiting=2)
    with running(model, settings) as port:
        answers: list[tuple[int, Any]] = []
        threads = [threading.Thread(target=lambda: answers.append(post(port, ASK))) for _ in range(3)]
        for thread in threads:
            thread.start()
        until(lambda: metric(port, "tessera_queue_length") == 2)
        status, found, headers = call(
            port, "POST", "/v1/chat/completions", json.dumps(ASK).encode(), {"Content-Type": "application/json"}
        )
        assert (status, assert_error(found)["code"], found["error"]["type"]) == (429, "rate_limit_exceeded", "requests")
        assert 1 <= int(headers["retry-after"]) <= 60
        gate.release(9)
        for thread in threads:
            thread.join(SECONDS)
        assert [status for status, _ in answers] == [200] * 3
        assert post(port, b"{")[0] == 400  # the places are free again
        assert metric(port, "tessera_queue_length") == metric(port, "tessera_running") == 0


def leave(port: int, body: dict[str, Any], ready: Callable[[], bool]) -> None:
    """Sends a request and hangs up when `ready`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    connection.request("POST", "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    until(ready)
    assert connection.sock is not None
    connection.sock.shutdown(socket.SHUT_RDWR)
    connection.close()


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_generation(stream: bool) -> None:
    model, gate, settings = gated()
    with running(model, settings) as port:
        gate.release(1)
        leave(port, {**ASK, "stream": stream}, lambda: len(model.asked) == 1)
        until(lambda: metric(port, 'tessera_requests_total{path="/v1/chat/completions",status="499"}') == 1)
        gate.release(1)
        until(lambda: model.ended == ["Gone"])
        gate.release(3)
        assert post(port, ASK)[0] == 200


def test_a_client_that_leaves_the_queue_is_never_answered() -> None:
    model, gate, settings = gated()
    with running(model, settings) as port:
        first = threading.Thread(target=post, args=(port, ASK))
        first.start()
        until(lambda: len(model.asked) == 1)
        leave(port, ASK, lambda: metric(port, "tessera_queue_length") == 1)
        until(lambda: metric(port, "tessera_queue_length") == 0)
        gate.release(9)
        first.join(SECONDS)
        assert post(port, ASK)[0] == 200
        assert (len(model.asked), model.ended) == (2, ["done", "done"])


def test_the_time_of_a_request_is_limited_in_the_queue_and_at_work() -> None:
    model, gate, settings = gated(seconds=0.3)
    with running(model, settings) as port:
        for stream in (False, True):
            status, found = post(port, {**ASK, "stream": stream})
            assert (status, assert_error(found)["code"], found["error"]["type"]) == (408, "timeout", "timeout")
        gate.release(1)
        until(lambda: model.ended == ["Gone"])
        gate.release(3)
        until(lambda: metric(port, "tessera_running") == 0)
        assert post(port, ASK)[0] == 200


def test_a_body_that_does_not_arrive_gives_its_place_back() -> None:
    model, _, settings = gated(waiting=1, upload=0.2)
    with running(model, settings) as port, contextlib.closing(socket.create_connection(("127.0.0.1", port))) as slow:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 90\r\n\r\n{"
        slow.sendall(head)
        until(lambda: metric(port, 'tessera_requests_total{path="/v1/chat/completions",status="408"}') == 1)
        assert metric(port, "tessera_queue_length") == 0


def test_the_end_waits_for_what_runs_and_tells_the_rest() -> None:
    model, gate, settings = gated()
    answers: list[tuple[int, Any]] = []
    with running(model, settings, grace=0.5) as port:
        threads = [threading.Thread(target=lambda: answers.append(post(port, ASK))) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: metric(port, "tessera_queue_length") == 1)
        gate.release(3)
        until(lambda: model.ended == ["done"])

        def told() -> None:  # the model's step ends when its request has been told already
            until(lambda: len(answers) == 2)
            gate.release(9)

        threads.append(threading.Thread(target=told))
        threads[-1].start()
    for thread in threads:
        thread.join(SECONDS)
    statuses = sorted(status for status, _ in answers)
    assert statuses == [200, 503]
    assert_error(next(found for status, found in answers if status == 503))


def test_several_images_reach_the_model_in_order() -> None:
    model = Scripted()
    with running(model, Settings(model="m")) as port:
        client(port).chat.completions.create(model="m", messages=[user("what", "data:,a", "data:,b")])  # type: ignore[list-item]
    [request] = model.asked
    assert [image.url for image in request.images] == ["data:,a", "data:,b"]
    assert request.messages[0].text == "what"


def test_fetched_images_may_be_as_long_as_a_body_together(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(bytes(600))
    model = Scripted()
    settings = Settings(model="m", limits=Limits(body=1000), allowed=Allowed.parse([f"file://{tmp_path}"]))
    with running(model, settings) as port:
        url = f"file://{tmp_path}/a.png"
        assert post(port, {"model": "m", "messages": [user("what", url)]})[0] == 200
        status, found = post(port, {"model": "m", "messages": [user("what", url, url)]})
    assert (status, assert_error(found)["code"]) == (400, "image_too_large")
    assert found["error"]["param"] == "messages[0].content[1].image_url.url"
    assert len(model.asked) == 1
