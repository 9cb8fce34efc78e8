"""`tessera bench`: speed against plain transformers code; ratios, measured in turns in one process."""

from __future__ import annotations

import contextlib
import importlib
import signal
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup


class BenchCommand(NamedTuple):
    """Where a benchmark's command lives; its module is imported when it is called."""

    module: str
    attribute: str
    help: str


BENCHMARKS = {
    "train": BenchCommand("tessera.bench.train", "train", "Our trainer against a plain loop over transformers' LLaVA."),
    "generate": BenchCommand("tessera.bench.generate", "generate", "Our decoding against transformers' generate()."),
    "ask": BenchCommand("tessera.bench.ask", "ask", "What plugged parts cost when questions are asked."),
    "serve": BenchCommand("tessera.bench.serve", "serve", "A server under 200 mixed requests, a fifth of them bad."),
    "tokens": BenchCommand("tessera.bench.tokens", "tokens", "Dropping visual tokens: time saved against FLOPs saved."),
    "eval": BenchCommand("tessera.bench.evaluate", "evaluate", "Questions that share an image against one by one."),
    "world": BenchCommand("tessera.bench.world", "world", "Images and questions per second of the built-in world."),
}


class Benchmarks(TyperGroup):
    """The table as a group of commands."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        for name, entry in BENCHMARKS.items():
            self.add_command(TyperCommand(name, callback=None, help=entry.help))

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else _load(name), rest

    def invoke(self, ctx: Any) -> Any:
        with sigterm_as_interrupt():
            return super().invoke(ctx)


@contextlib.contextmanager
def sigterm_as_interrupt() -> Iterator[None]:
    """Within, SIGTERM raises `KeyboardInterrupt` as Ctrl-C does, so that servers and folders of a benchmark do not outlive it."""
    if threading.current_thread() is not threading.main_thread():  # signals are not its business
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _load(name: str) -> Any:
    entry = BENCHMARKS[name]
    single = typer.Typer(add_completion=False)
    single.command(name)(getattr(importlib.import_module(entry.module), entry.attribute))
    return typer.main.get_command(single)


app = typer.Typer(cls=Benchmarks, no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure speed and memory against plain transformers code."""
