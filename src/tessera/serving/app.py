"""The application: paths, tokens, bodies; every failure is an error object."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tessera.serving.answer import Completion, Writer, model_list, model_object, to_json
from tessera.serving.errors import SERVER, ApiError, fault, too_large
from tessera.serving.fetch import Allowed, load
from tessera.serving.limits import Limits
from tessera.serving.metrics import CONTENT_TYPE, Metrics
from tessera.serving.request import ChatRequest, read_json, read_request
from tessera.serving.worker import Answerer, Gone, Job, Worker

CHAT = "/v1/chat/completions"
PATHS = (CHAT, "/v1/models", "/healthz", "/metrics")
LEFT = 499
"""Status, in the metrics only, of a request whose client left."""
_STATUS = "tessera.status"
_USAGE = "tessera.usage"
_SLOW = "tessera.slow"
_DRAIN = 4
"""How many times the largest body is read and thrown away before an early refusal: an answer that is sent while the client
still sends is lost with the connection."""
_DRAIN_SECONDS = 10.0

_log = logging.getLogger("tessera.serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is served and how.

    model        the name that requests must give
    fingerprint  of everything that an answer depends on, see `system_fingerprint` of an answer
    token        that requests must bear; None: anyone may ask
    """

    model: str
    fingerprint: str = ""
    limits: Limits = field(default_factory=Limits)
    allowed: Allowed = field(default_factory=Allowed)
    token: str | None = None


def create(answer: Answerer, settings: Settings) -> FastAPI:
    """The application over one model, whose generations run one after the other in a thread of their own."""
    service = _Service(answer, settings)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        yield
        await service.worker.close()

    app = FastAPI(title="Tessera", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_api_route(CHAT, service.chat, methods=["POST"])
    app.add_api_route("/v1/models", service.models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", service.model, methods=["GET"])
    app.add_api_route("/healthz", service.health, methods=["GET"])
    app.add_api_route("/metrics", service.metrics_text, methods=["GET"])
    app.state.close = service.worker.stop
    app.add_exception_handler(ApiError, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(Exception, _refuse)
    app.add_middleware(_Door, service=service)
    return app


class _Service:
    """What the paths do."""

    def __init__(self, answer: Answerer, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.worker = Worker(answer, settings.limits)
        self._created = int(time.time())

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        begin = time.monotonic()
        limits = self.settings.limits
        self.worker.enter()
        try:
            _check_type(request)
            asked = read_request(read_json(await _body(request, limits)), self.settings.model, limits)
            job = Job(asked, await self._images(asked), begin + limits.seconds)
        except BaseException:
            self.worker.leave()
            raise
        return _Answer(self, request, job, begin)

    async def _images(self, asked: ChatRequest) -> list[str | bytes]:
        """Images as `open_image` takes them; addresses are fetched in threads, one request's after the other."""
        found: list[str | bytes] = []
        limits = self.settings.limits
        left = limits.body  # together they may be as long as if they had been sent
        for image in asked.images:
            if image.url[:5].lower() == "data:":
                found.append(image.url)
                continue
            most = min(limits.image_bytes, left)
            fetched = await asyncio.to_thread(load, image.url, image.param, self.settings.allowed, most)
            found.append(fetched)
            left -= len(fetched)
        return found

    async def models(self) -> Response:
        """GET /v1/models."""
        return _json(model_list([self.settings.model], self._created))

    async def model(self, name: str) -> Response:
        """GET /v1/models/NAME."""
        if name != self.settings.model:
            told = f"The model '{name[:200]}' does not exist here; this server has '{self.settings.model}'."
            raise ApiError(404, told, param="model", code="model_not_found")
        return _json(model_object(name, self._created))

    async def health(self) -> Response:
        """GET /healthz."""
        if not self.worker.ready:
            raise ApiError(503, "The server is not ready.", kind=SERVER)
        return _json({"status": "ok", "model": self.settings.model})

    async def metrics_text(self) -> Response:
        """GET /metrics."""
        return Response(self.metrics.text(*self.worker.load()), headers={"Content-Type": CONTENT_TYPE})


class _Answer(Response):
    """Runs a job and sends what it gives, whole or as a stream. Nothing is sent before the first event, so that an early
    failure still has a status of its own."""

    def __init__(self, service: _Service, request: Request, job: Job, begin: float) -> None:
        super().__init__()
        self._service, self._request, self._job, self._begin = service, request, job, begin
        settings, asked = service.settings, job.request
        self._writer = Writer(settings.model, settings.fingerprint, asked.include_usage)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watch = asyncio.create_task(self._watch(receive))
        try:
            self._service.worker.put(self._job)
            await (self._stream(scope, send) if self._job.request.stream else self._whole(scope, receive, send))
        except Gone:
            scope[_STATUS] = LEFT
        finally:
            watch.cancel()
            self._service.worker.done(self._job, time.monotonic() - self._begin)
            self._service.worker.leave()

    async def _watch(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._job.leave()

    async def _next(self) -> str | Completion:
        event = await self._job.next(self._service.settings.limits.seconds)
        if isinstance(event, Completion):
            self._service.metrics.tokens(event.prompt_tokens, event.tokens)
            self._request.scope[_USAGE] = event
        return event

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        while not isinstance(event := await self._next(), Completion):
            pass
        await _json(self._writer.whole(event))(scope, receive, send)

    async def _stream(self, scope: Scope, send: Send) -> None:
        event = await self._next()
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        text = self._writer.first()
        try:
            while not isinstance(event, Completion):
                await send({"type": "http.response.body", "body": text + self._writer.piece(event), "more_body": True})
                text = b""
                event = await self._next()
            text += self._writer.last(event)
        except ApiError as error:
            scope[_STATUS] = error.status
            text += self._writer.failed(error)
        await send({"type": "http.response.body", "body": text, "more_body": False})


# Bodies


def _check_type(request: Request) -> None:
    """Only JSON: what a web page can send to another site without asking first is something else."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        told = f"The Content-Type must be application/json, not {kind[:100] or 'missing'}."
        raise ApiError(415, told, code="unsupported_media_type")


async def _body(request: Request, limits: Limits) -> bytes:
    told = f"The body has more than {limits.body:,} bytes, the limit of this server. Send smaller images, or fewer."
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > limits.body:
        raise too_large(told)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.upload):
            async for part in request.stream():
                body += part
                if len(body) > limits.body:
                    raise too_large(told)
    except TimeoutError:
        request.scope[_SLOW] = True
        raise ApiError(408, f"The body took longer than {limits.upload:g} seconds to arrive.", kind="timeout") from None
    return bytes(body)


# Answers


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(to_json(value), status, headers, "application/json")


async def _refuse(request: Request, error: Exception) -> Response:
    """The error object of whatever went wrong."""
    if isinstance(error, HTTPException):
        error = _of_http(request, error)
    if not isinstance(error, ApiError):
        error = fault()
    return _json(error.body(), error.status, error.headers)


def _of_http(request: Request, error: HTTPException) -> ApiError:
    path = request.url.path[:200]
    if error.status_code == 404:
        return ApiError(404, f"Invalid URL ({request.method} {path})", code="unknown_url")
    if error.status_code == 405:
        told = f"Not allowed to {request.method} on {path}. (HINT: Perhaps you meant to use a different HTTP method?)"
        return ApiError(405, told, code="method_not_supported", headers=dict(error.headers or {}))
    return ApiError(error.status_code, str(error.detail))


class _Door:
    """Everything passes here: the bearer token, bodies that nobody read, the count of answers, the log."""

    def __init__(self, app: ASGIApp, service: _Service) -> None:
        self._app, self._service = app, service
        token = service.settings.token
        self._token = None if token is None else _digest(token.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.monotonic()
        unread = True

        async def receiving() -> Message:
            nonlocal unread
            message = await receive()
            unread = unread and message["type"] == "http.request" and bool(message.get("more_body"))
            return message

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope.setdefault(_STATUS, message["status"])
                if unread:
                    await self._drain(scope, receiving, lambda: unread)
            await send(message)

        try:
            refused = self._unauthorised(scope)
            if refused is None:
                await self._app(scope, receiving, sending)
            else:
                await _json(refused.body(), refused.status, refused.headers)(scope, receiving, sending)
        except Exception:
            scope[_STATUS] = 500
            raise
        finally:
            self._count(scope, time.monotonic() - begin)

    def _unauthorised(self, scope: Scope) -> ApiError | None:
        """The refusal of a request without the token."""
        if self._token is None or scope["path"] == "/healthz":
            return None
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, token = given.partition(b" ")
        if not token or kind.lower() != b"bearer":
            told = "You didn't provide an API key. Send it in the Authorization header: Bearer YOUR_KEY."
            return ApiError(401, told, headers={"WWW-Authenticate": "Bearer"})
        if not hmac.compare_digest(_digest(token.strip()), self._token):
            return ApiError(401, "Incorrect API key provided.", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        return None

    async def _drain(self, scope: Scope, receiving: Callable[[], Awaitable[Message]], unread: Callable[[], bool]) -> None:
        if _SLOW in scope or any(name == b"expect" for name, _ in scope["headers"]):
            return  # who expects to be asked sends nothing before
        left = _DRAIN * self._service.settings.limits.body
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                while unread() and left > 0:
                    left -= len((await receiving()).get("body", b""))

    def _count(self, scope: Scope, seconds: float) -> None:
        path = scope["path"] if scope["path"] in PATHS else "other"
        status = scope.get(_STATUS, LEFT)
        self._service.metrics.answered(path, status)
        if path == CHAT:
            self._service.metrics.took(seconds)
        usage: Completion | None = scope.get(_USAGE)
        tokens = f", {usage.prompt_tokens} + {usage.tokens} tokens" if usage is not None else ""
        _log.info("%s %s %s, %.2f s%s", scope["method"], path, status, seconds, tokens)


def _digest(secret: bytes) -> bytes:
    """Of equal length for every secret, so that comparing takes equally long."""
    return hashlib.sha256(secret).digest()
