"""One thread that runs the model, and the jobs it is handed: asyncio on one side, generation on the other."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeAlias

from tessera.errors import UserError
from tessera.serving.answer import Completion
from tessera.serving.errors import ApiError, busy, fault, invalid, stopping, timed_out
from tessera.serving.limits import Limits
from tessera.serving.request import ChatRequest

OnText: TypeAlias = Callable[[str], object]
Answerer: TypeAlias = Callable[[ChatRequest, Sequence[str | bytes], OnText, Callable[[], None]], Completion]
"""(request, its images as `open_image` takes them, called with every piece of text, called between steps) -> the answer.

The last two may raise; generation ends there. `tessera.serving.engine.ServingEngine` is one.
"""

_log = logging.getLogger("tessera.serving")
_LONGEST_RETRY = 60


class Gone(Exception):
    """The client has left."""


Event: TypeAlias = str | Completion | ApiError | Gone


class Job:
    """A request on its way: the worker puts events, the event loop takes them. A cancelled job ends at its next step."""

    def __init__(self, request: ChatRequest, images: Sequence[str | bytes], deadline: float) -> None:
        """deadline: on `time.monotonic`'s clock. Made on the event loop."""
        self.request, self.images, self.deadline = request, images, deadline
        self._cancelled = threading.Event()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def cancel(self) -> None:
        """Nobody wants the answer any more."""
        self._cancelled.set()

    def leave(self) -> None:
        """The client has left (called on the event loop)."""
        self.cancel()
        self._events.put_nowait(Gone())

    def check(self) -> None:
        """Raises `Gone` for a cancelled job; `ApiError` for one whose time is over. Called by the worker between steps."""
        if self._cancelled.is_set():
            raise Gone
        if time.monotonic() > self.deadline:
            raise ApiError(408, "the time is over")

    def put(self, event: Event) -> None:
        """An event for the event loop, which may have ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def next(self, seconds: float) -> str | Completion:
        """The next event. Raises `ApiError` and `Gone`; `seconds`, the limit, is what a job whose time is over is told."""
        try:
            async with asyncio.timeout(max(self.deadline - time.monotonic(), 0)):
                event = await self._events.get()
        except TimeoutError:
            raise timed_out(seconds) from None
        if isinstance(event, ApiError):
            raise timed_out(seconds) if event.status == 408 else event
        if isinstance(event, Gone):
            raise event
        return event


class Worker:
    """The thread and its queue. All methods without an underscore are called on the event loop."""

    def __init__(self, answer: Answerer, limits: Limits) -> None:
        self._answer, self._limits = answer, limits
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="tessera-model", daemon=True)
        self._here = 0
        self._open: set[Job] = set()
        self._seconds = 1.0
        self._closing = self._busy = False

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._thread.is_alive() and not self._closing

    def enter(self) -> None:
        """Takes a place. Raises `ApiError` (429) when all are taken, (503) when the server is shutting down."""
        if self._closing:
            raise stopping()
        if self._here > self._limits.waiting:
            wait = math.ceil(min(self._seconds * self._here, _LONGEST_RETRY))
            raise busy(self._here - 1, max(wait, 1))
        self._here += 1

    def leave(self) -> None:
        """Gives the place back."""
        self._here -= 1

    def put(self, job: Job) -> None:
        """Queues a job, whose request holds a place."""
        self._open.add(job)
        self._jobs.put(job)

    def done(self, job: Job, seconds: float) -> None:
        """A job's request has ended, however it did."""
        job.cancel()
        self._open.discard(job)
        self._seconds = 0.8 * self._seconds + 0.2 * seconds

    def load(self) -> tuple[int, int]:
        """How many requests run (0 or 1), and how many more are here."""
        running = min(int(self._busy), self._here)
        return running, self._here - running

    def stop(self) -> None:
        """Takes no more requests, and tells those that are here so."""
        self._closing = True
        for job in self._open:
            job.put(stopping())
            job.cancel()

    async def close(self, seconds: float = 10.0) -> None:
        """Ends the thread, after the step it is at."""
        self.stop()
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join, seconds)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            self._busy = True
            event = self._event(job)
            self._busy = False
            if event is not None:
                job.put(event)
            del job, event  # an idle server holds no images

    def _event(self, job: Job) -> Event | None:
        """What a job ends with; whatever happens, the thread goes on."""
        try:
            job.check()
            return self._answer(job.request, job.images, job.put, job.check)
        except ApiError as error:
            return error
        except Gone:
            return None
        except UserError as error:
            return invalid(str(error), "messages")
        except Exception:
            _log.exception("a request failed")
            return fault()
