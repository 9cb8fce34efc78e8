"""The server as a process: its socket, its start line, its end on Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from tessera.errors import UserError
from tessera.serving.app import Settings, create
from tessera.serving.worker import Answerer

_CUT = 1.0
"""Seconds between telling requests that time is over and cutting their connections."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `UserError` if the address cannot be had."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=512)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            raise UserError(f"port {port} of {host} is in use; give another one with --port, or 0 for any free one.") from error
        told = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"cannot listen on port {port} of {host} ({told}).") from error


def address(listening: socket.socket) -> str:
    """The address of the protocol, for people and clients: http://127.0.0.1:8000/v1."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


def serve(
    answer: Answerer,
    settings: Settings,
    listening: socket.socket,
    on_start: Callable[[], object] = lambda: None,
    grace: float = 10.0,
) -> None:
    """Answers requests until Ctrl-C or SIGTERM; what runs then has `grace` seconds to end. A second Ctrl-C does not wait."""
    make(answer, settings, on_start, grace).run(sockets=[listening])


def make(answer: Answerer, settings: Settings, on_start: Callable[[], object] = lambda: None, grace: float = 10.0) -> Server:
    """The server, not yet running: `run(sockets=[bind(...)])` runs it, `should_exit = True` ends it."""
    app = create(answer, settings)
    config = uvicorn.Config(
        app,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(grace + 2 * _CUT),
    )
    return Server(config, app.state.close, on_start, grace)


class Server(uvicorn.Server):
    """Uvicorn's server that says when it is ready, and ends by returning."""

    def __init__(self, config: uvicorn.Config, close: Callable[[], Any], on_start: Callable[[], object], grace: float) -> None:
        super().__init__(config)
        self._close, self._on_start, self._grace = close, on_start, grace

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        last = asyncio.get_running_loop().call_later(self._grace, self._close)
        try:
            await super().shutdown(sockets)
        finally:
            last.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn's own raises the signals again at the end, which would turn an orderly end into an interruption."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
