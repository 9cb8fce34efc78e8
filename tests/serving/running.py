"""A real server in a thread, and what is sent to it."""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import openai
from PIL import Image
from tests.patience import SECONDS

from tessera.serving.answer import Completion
from tessera.serving.app import Settings
from tessera.serving.request import ChatRequest
from tessera.serving.server import address, bind, make
from tessera.serving.worker import Answerer


@contextlib.contextmanager
def running(answer: Answerer, settings: Settings, grace: float = 2.0) -> Iterator[int]:
    """The port of a server that runs until the end of the block."""
    ready = threading.Event()
    with bind("127.0.0.1", 0) as listening:
        port: int = listening.getsockname()[1]
        assert address(listening) == f"http://127.0.0.1:{port}/v1"
        server = make(answer, settings, ready.set, grace)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            assert ready.wait(SECONDS)
            yield port
        finally:
            server.should_exit = True
            thread.join(SECONDS)
            assert not thread.is_alive()


def client(port: int, key: str = "none") -> openai.OpenAI:
    """The official client, without second tries."""
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=SECONDS)


def post(port: int, body: bytes | dict[str, Any], path: str = "/v1/chat/completions", **headers: str) -> tuple[int, Any]:
    """Status and JSON of a request that no client library would send."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    status, found, _ = call(port, "POST", path, data, {"Content-Type": "application/json", **headers})
    return status, found


def call(
    port: int, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, Any, http.client.HTTPMessage]:
    """Status, body (JSON if it is) and headers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        data = answer.read()
        kind = answer.headers.get("content-type", "")
        return answer.status, json.loads(data) if kind == "application/json" else data.decode(), answer.headers


def data_url(image: Image.Image) -> str:
    """A PNG as a data URL."""
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def user(text: str, *urls: str) -> dict[str, Any]:
    """A message with images."""
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


class Scripted:
    """An answerer that says "a b c ..." word by word, each after `step()`."""

    def __init__(self, words: Sequence[str] = ("a", "b", "c"), step: Callable[[], object] = lambda: None) -> None:
        self.words, self.step = list(words), step
        self.ended: list[str] = []
        self.asked: list[ChatRequest] = []

    def __call__(
        self, request: ChatRequest, images: Sequence[str | bytes], on_text: Callable[[str], object], check: Callable[[], None]
    ) -> Completion:
        self.asked.append(request)
        try:
            for place, word in enumerate(self.words):
                self.step()
                check()
                on_text(word if place == 0 else f" {word}")
        except BaseException as error:
            self.ended.append(type(error).__name__)
            raise
        self.ended.append("done")
        return Completion(" ".join(self.words), "stop", 5, len(self.words))
