"""A server under load: mixed requests side by side through OpenAI's own client, a fifth of them bad.

Every good answer is compared with what `tessera ask` says, every bad one must be an error object, and memory must not grow.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import random
import re
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tessera.bench.subject import scenes
from tessera.console import JsonOption, emit, progress
from tessera.errors import TesseraError, UserError

if TYPE_CHECKING:
    from rich.table import Table

    from tessera.serving.limits import Limits

GROWTH = 32.0
"""MiB that the server may grow by between a fifth of the requests and all of them."""
BAD = ("malformed", "oversized", "image", "left", "model")
"""Kinds of bad requests: no JSON, a body over the limit, a broken image, a client that hangs up, a model that is not there."""
_ERROR = {"message", "type", "param", "code"}
_PATH = "/v1/chat/completions"


@dataclass(slots=True, kw_only=True)
class ServeLoad:
    """What a run found. Seconds are of whole requests, waiting included.

    good, bad  requests by kind; right: good answers equal to those of the session of `tessera ask`, tokens counted too
    refused    bad requests that got an error object; cancelled ones get none: the model must have stopped for them
    wrong      sentences about everything that was not as it should be, at most 20
    start_mib, end_mib  resident memory of the server after the first fifth, and after all
    reached    whether every good answer is right, every bad request was refused, and memory grew by less than `GROWTH`
    """

    model: str
    requests: int
    at_once: int
    good: dict[str, int]
    bad: dict[str, int]
    right: int
    refused: int
    cancelled: int
    wrong: list[str]
    seconds: float
    requests_per_second: float
    median_seconds: float
    slowest_seconds: float
    tokens_out: int
    start_mib: float
    end_mib: float
    reached: bool


@dataclass(frozen=True, slots=True, eq=False)
class RequestCase:
    """A good request, itself only: the images as files and as data URLs, the question, how it is asked."""

    images: tuple[Any, ...]
    urls: tuple[str, ...]
    question: str
    tokens: int
    stream: bool


def measure(model: str = "", requests: int = 200, at_once: int = 16, seed: int = 0, new_tokens: int = 16) -> ServeLoad:
    """Runs the load against a server in a process of its own. `model` "" is the nano shape with random weights.

    Raises `UserError` without OpenAI's client, or off Linux.
    """
    try:
        import openai  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError("this benchmark asks through OpenAI's client. Install it with: pip install openai") from error
    from tessera.serving.limits import Limits

    limits = Limits(body=1_000_000, waiting=2 * at_once, tokens=max(64, new_tokens))
    with _served(model, limits) as (port, process, session):
        load = _Load(port, session, limits, requests, at_once, random.Random(seed), new_tokens)
        return load.run(model, lambda: _resident_mib(process))


@contextlib.contextmanager
def _served(model: str, limits: Limits) -> Iterator[tuple[int, int, Any]]:
    """(port of a server in a process of its own, its process id, session of the same model for what is expected)."""
    import signal
    import subprocess
    import sys
    import tempfile

    import tessera
    from tessera.bench.subject import load
    from tessera.generation.session import open_session
    from tessera.models import reference

    with contextlib.ExitStack() as stack:
        if not model:
            built, processor, _ = load("")
            model = str(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "random")
            reference.save(built, processor, model)
        session = open_session(model)
        options = {"--max-body": limits.body, "--max-waiting": limits.waiting, "--max-tokens": limits.tokens, "--port": 0}
        arguments = [str(word) for pair in options.items() for word in pair]
        paths = [str(Path(tessera.__file__).parent.parent), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            [sys.executable, "-m", "tessera.cli.main", "serve", model, "--name", "m", "--quiet", *arguments],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        stack.callback(process.wait)
        stack.callback(process.kill)
        assert process.stdout is not None
        stack.enter_context(process.stdout)
        found = re.search(r"http://127\.0\.0\.1:(\d+)/v1", process.stdout.readline())
        if found is None:
            raise TesseraError("the server did not start; try: tessera serve")
        yield int(found[1]), process.pid, session
        process.send_signal(signal.SIGINT)
        if process.wait(60) != 0:
            raise TesseraError(f"the server ended with exit code {process.returncode} on Ctrl-C.")


class _Load:
    """One run: what is asked, what came back."""

    def __init__(
        self, port: int, session: Any, limits: Limits, requests: int, at_once: int, chance: random.Random, new: int
    ) -> None:
        import openai

        self.port, self.session, self.limits, self.at_once = port, session, limits, at_once
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
        self.cases = self._cases(chance, new)
        kinds = [BAD[n % len(BAD)] for n in range(requests // 5)]
        kinds += ["good"] * (requests - len(kinds))
        chance.shuffle(kinds)
        self.plan = [(kind, chance.choice(self.cases)) for kind in kinds]
        self.wrong: list[str] = []
        self.counts: Counter[str] = Counter()
        self.good: Counter[str] = Counter()
        self.seconds: list[float] = []
        self._lock = threading.Lock()

    def run(self, model: str, memory: Callable[[], float]) -> ServeLoad:
        """The whole load, and what it found. memory: MiB of the server now."""
        expected = {case: self._expected(case) for case in self.cases}
        begin, start = time.perf_counter(), 0.0
        first = max(1, len(self.plan) // 5)
        with progress() as bars, ThreadPoolExecutor(self.at_once) as threads:
            task = bars.add_task("asking", total=len(self.plan))
            try:
                for done, _ in enumerate(threads.map(lambda entry: self._one(entry[0], entry[1], expected), self.plan), 1):
                    bars.advance(task)
                    if done == first:
                        start = memory()
            except BaseException:  # without this, leaving the block would first ask all the rest
                threads.shutdown(wait=False, cancel_futures=True)
                raise
        seconds, end = time.perf_counter() - begin, memory()
        self._check_idle()
        bad = Counter(kind for kind, _ in self.plan if kind != "good")
        cancelled = bad["left"]
        return ServeLoad(
            model=model or "nano shape, random weights",
            requests=len(self.plan),
            at_once=self.at_once,
            good=dict(self.good),
            bad=dict(bad),
            right=self.counts["right"],
            refused=self.counts["refused"],
            cancelled=self.counts["left"],
            wrong=self.wrong[:20],
            seconds=round(seconds, 2),
            requests_per_second=round(len(self.plan) / seconds, 1),
            median_seconds=round(statistics.median(self.seconds or [0.0]), 3),
            slowest_seconds=round(max(self.seconds, default=0.0), 3),
            tokens_out=self.counts["tokens"],
            start_mib=start,
            end_mib=end,
            reached=not self.wrong
            and self.counts["right"] == sum(self.good.values())
            and self.counts["refused"] == bad.total() - cancelled
            and self.counts["left"] == cancelled
            and end - start < GROWTH,
        )

    def _cases(self, chance: random.Random, new: int) -> list[RequestCase]:
        """Questions with no, one and two images, whole and streamed."""
        rows = scenes(6, 3, 112)
        made = []
        for (images, questions), (others, _) in zip(rows, rows[1:] + rows[:1], strict=True):
            for question in questions:
                shown = chance.choice([[], images, images, images + others])
                made.append(RequestCase(tuple(shown), tuple(map(_data_url, shown)), question, new, chance.random() < 0.5))
        return made

    def _expected(self, case: RequestCase) -> tuple[str, int]:
        self.session.show(list(case.images))
        said = self.session.ask(case.question, case.tokens, lambda _: None)
        return said.text, said.tokens

    def _one(self, kind: str, case: RequestCase, expected: dict[RequestCase, tuple[str, int]]) -> None:
        try:
            if kind == "good":
                begin = time.perf_counter()
                found = self._streamed(case) if case.stream else self._whole(case)
                with self._lock:
                    self.seconds.append(time.perf_counter() - begin)
                    self.good[f"{len(case.images)} images, {'streamed' if case.stream else 'whole'}"] += 1
                    self.counts["right"] += found == expected[case]
                    self.counts["tokens"] += found[1]
                if found != expected[case]:
                    self._tell(f"{case.question!r} gave {found}, tessera ask says {expected[case]}")
            elif kind == "left":
                self._leave(case)
            else:
                self._refused(kind, case)
        except Exception as error:
            self._tell(f"{kind}: {type(error).__name__}: {error}")

    def _messages(self, case: RequestCase) -> Any:
        images = [{"type": "image_url", "image_url": {"url": url}} for url in case.urls]
        return [{"role": "user", "content": [*images, {"type": "text", "text": case.question}]}]

    def _whole(self, case: RequestCase) -> tuple[str, int]:
        made = self.client.chat.completions.create(model="m", messages=self._messages(case), max_tokens=case.tokens)
        usage = made.usage
        return made.choices[0].message.content or "", usage.completion_tokens if usage is not None else -1

    def _streamed(self, case: RequestCase) -> tuple[str, int]:
        text, tokens = "", -1
        for chunk in self.client.chat.completions.create(
            model="m",
            messages=self._messages(case),
            max_tokens=case.tokens,
            stream=True,
            stream_options={"include_usage": True},
        ):
            text += "".join(choice.delta.content or "" for choice in chunk.choices)
            tokens = chunk.usage.completion_tokens if chunk.usage is not None else tokens
        return text, tokens

    def _refused(self, kind: str, case: RequestCase) -> None:
        """A bad request that must get an error object."""
        wanted, body = self._bad(kind, case)
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)) as connection:
            connection.request("POST", _PATH, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            found = json.loads(answer.read())
            if answer.status != wanted or list(found) != ["error"] or set(found["error"]) != _ERROR:
                raise TesseraError(f"status {answer.status} instead of {wanted}: {found}")
        with self._lock:
            self.counts["refused"] += 1

    def _bad(self, kind: str, case: RequestCase) -> tuple[int, bytes]:
        """The status that is wanted, and the body."""
        whole = {"model": "m", "messages": self._messages(case), "max_tokens": case.tokens}
        if kind == "malformed":
            return 400, json.dumps(whole).encode()[:-7]
        if kind == "oversized":
            return 413, json.dumps(whole | {"user": "x" * self.limits.body}).encode()
        if kind == "model":
            return 404, json.dumps(whole | {"model": "gone"}).encode()
        broken = "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(50)).decode()
        messages = self._messages(RequestCase((), (broken,), case.question, case.tokens, False))
        return 400, json.dumps(whole | {"messages": messages}).encode()

    def _leave(self, case: RequestCase) -> None:
        """A client that hangs up after the first bytes of a stream, or before any."""
        body = json.dumps({"model": "m", "messages": self._messages(case), "stream": True}).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request("POST", _PATH, body, {"Content-Type": "application/json"})
            if case.stream:
                connection.getresponse().read1(10)
        with self._lock:
            self.counts["left"] += 1

    def _check_idle(self) -> None:
        """After all this nothing waits or runs, and the server is well."""
        end = time.monotonic() + 60
        while (idle := self._gauges()) != (0.0, 0.0) and time.monotonic() < end:
            time.sleep(0.05)
        if idle != (0.0, 0.0):
            self._tell(f"{idle} requests wait and run although all clients are gone")

    def _gauges(self) -> tuple[float, ...]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return float(found["tessera_queue_length"]), float(found["tessera_running"])

    def _tell(self, what: str) -> None:
        with self._lock:
            self.wrong.append(what)


def _data_url(image: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _resident_mib(process: int) -> float:
    """Memory of a process that is resident now. Raises `UserError` where the system has no /proc to tell."""
    try:
        pages = int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1])
    except OSError as error:
        raise UserError("this benchmark reads the server's memory from /proc, which Linux has.") from error
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def serve(
    model: Annotated[str, typer.Option(help="nano or a folder; the nano shape with random weights by default.")] = "",
    requests: Annotated[int, typer.Option(help="Requests, a fifth of them bad.", min=10)] = 200,
    at_once: Annotated[int, typer.Option(help="Requests side by side.", min=1, max=64)] = 16,
    new_tokens: Annotated[int, typer.Option(help="Tokens per answer at most.", min=1)] = 16,
    as_json: JsonOption = False,
) -> None:
    """A server under mixed load: answers against tessera ask, errors, cancellation, memory."""
    found = measure(model, requests, at_once, new_tokens=new_tokens)
    emit(found, as_json, _table)
    if not found.reached:
        raise typer.Exit(1)


def _table(found: ServeLoad) -> Table:
    from rich.table import Table

    table = Table(title=f"{found.model}, {found.requests} requests, {found.at_once} at once", box=None, show_header=False)
    table.add_column(justify="right")
    table.add_column()
    good = sum(found.good.values())
    left = found.bad.get("left", 0)
    rows: list[tuple[Any, str]] = [
        (f"{found.right}/{good}", "good requests answered as tessera ask answers"),
        (f"{found.refused}/{sum(found.bad.values()) - left}", "bad requests answered with an error object"),
        (f"{found.cancelled}/{left}", "clients that left, nothing left running"),
        (f"{found.requests_per_second}", f"requests per second, {found.tokens_out} tokens in {found.seconds} s"),
        (f"{found.median_seconds} s", f"per good request in the middle, {found.slowest_seconds} s at most"),
        (f"{found.end_mib - found.start_mib:+.1f} MiB", f"memory, from {found.start_mib} to {found.end_mib} MiB"),
    ]
    for number, what in rows:
        table.add_row(str(number), what)
    for wrong in found.wrong:
        table.add_row("wrong", wrong)
    return table
