"""Runs claims in processes of their own, several at a time; a process that dies does not end the others.

for task, answer in spread(tasks, jobs=2, threads=1): ...
"""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from tessera.lab.evidence import Entry


@dataclass(frozen=True, slots=True)
class Task:
    """A claim to run, by names, since functions do not travel. seconds: what it is expected to cost."""

    socket: str
    part: str
    claim: str
    seconds: float = 0.0


@dataclass(slots=True)
class _Worker:
    process: Any
    pipe: Connection
    task: Task | None = None


Begun = Callable[[Task], None]


def spread(tasks: Sequence[Task], jobs: int, threads: int, on_begin: Begun | None = None) -> Iterator[tuple[Task, Entry | str]]:
    """Each task with its result as it ends, or with a sentence if its process died; the longest begin first.

    jobs     processes at a time
    threads  of torch in each

    Whatever ends this iterator (an interrupt, `close`) ends the processes; results that were measured stay on disk.
    """
    context = multiprocessing.get_context("spawn")
    waiting = sorted(tasks, key=lambda task: task.seconds)
    workers: list[_Worker] = []
    try:
        while waiting or workers:
            while waiting and len(workers) < jobs:
                workers.append(_started(context, threads))
                _give(workers[-1], waiting, on_begin)
            ready = wait([worker.pipe for worker in workers])
            for worker in [w for w in workers if w.pipe in ready]:
                task = worker.task
                assert task is not None
                try:
                    answer: Entry | str = worker.pipe.recv()
                except (EOFError, OSError):
                    worker.process.join()
                    workers.remove(worker)
                    yield task, f"its process ended with code {worker.process.exitcode}"
                    continue
                if waiting:
                    _give(worker, waiting, on_begin)
                else:
                    worker.pipe.close()
                    worker.process.join()
                    workers.remove(worker)
                yield task, answer
    finally:
        for worker in workers:
            worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _started(context: Any, threads: int) -> _Worker:
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, threads), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _give(worker: _Worker, waiting: list[Task], on_begin: Begun | None) -> None:
    worker.task = waiting.pop()
    if on_begin is not None:
        on_begin(worker.task)
    with suppress(OSError):  # it has died since: reading from it says so
        worker.pipe.send(worker.task)


def _work(pipe: Connection, threads: int) -> None:
    """Runs what comes through the pipe until it is closed. An interrupt is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    from tessera.lab.claims import claims_of
    from tessera.lab.local_lab import LocalLab
    from tessera.lab.verify import verify

    lab = LocalLab(threads=threads)
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        try:
            claims = [claim for claim in claims_of(task.socket, task.part) if claim.id == task.claim]
            pipe.send(verify(task.socket, task.part, claims, lab)[0])
        except Exception as error:
            pipe.send(f"{type(error).__name__}: {' '.join(str(error).split())}")
