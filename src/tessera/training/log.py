"""The log of a run: log.jsonl, TensorBoard, and a line or a progress bar in the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tessera.errors import UserError
from tessera.io import atomic_write, disk_error
from tessera.training.plan import TrainConfig


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a run."""

    kind: str
    """notice, stage, step, skipped, checkpoint, evaluation, stopped or done."""
    step: int
    """Steps finished so far."""
    text: str
    values: dict[str, Any] = field(default_factory=dict)


class Log:
    """log.jsonl: a line per step {step, stage, loss, lr, ...} and per evaluation {step, evaluation: {...}}.

    Opened at `step`, it drops the lines beyond it (of a run killed after its last checkpoint) and a torn one.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.path = path
        kept: list[str] = []
        self.evaluated: set[int] = set()
        if step and path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    record = json.loads(line)
                    if record["step"] > step:
                        continue
                except (ValueError, KeyError, TypeError):
                    continue
                kept.append(line)
                if "evaluation" in record:
                    self.evaluated.add(record["step"])
        with atomic_write(path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, record: dict[str, Any]) -> None:
        """Appends one record, at once on disk. Raises `TesseraError` when the disk is full."""
        try:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise disk_error(error, self.path) from error

    def close(self) -> None:
        self._file.close()


class Board:
    """TensorBoard scalars under `folder`."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UserError("training.tensorboard needs the package tensorboard: pip install tensorboard.") from error
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def write(self, values: dict[str, Any], step: int, prefix: str) -> None:
        """Adds every number of `values` as `prefix/key`."""
        for key, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                self._writer.add_scalar(f"{prefix}/{key}", value, step)

    def close(self) -> None:
        self._writer.close()


class Reporter:
    """A progress bar with the time left; a line every `every` steps where there is no terminal."""

    def __init__(self, steps: int, done: int, every: int, console: Console | None = None) -> None:
        self.steps, self.first, self.every = steps, done, every
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._seconds = 0.0
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._bar.add_task("training", total=steps, completed=done, note="")
            self._bar.start()

    def step(self, record: dict[str, Any], seconds: float) -> None:
        """One finished step that took `seconds`."""
        self._seconds += seconds
        done = record["step"]
        loss = "   -   " if record["loss"] is None else f"{record['loss']:.4f}"
        speeds = [f"{record[f'{kind}_per_second']:,.0f} {kind}/s" for kind in ("samples", "tokens")]
        note = f"loss {loss}  {speeds[1] if record['tokens'] else speeds[0]}"
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=record["stage"], note=note)
        elif done % self.every == 0 or done == self.steps:
            left = self._seconds / (done - self.first) * (self.steps - done)
            self.say(f"{record['stage']} {done}/{self.steps}  {note}  {_duration(left)} left")

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()


class Outputs:
    """All of it for the process that speaks; every method of the others' does nothing.

    `listener` receives every `Event`.
    """

    def __init__(self, speaks: bool, listener: Callable[[Event], None] | None) -> None:
        self.speaks, self._listener = speaks, listener
        self._log: Log | None = None
        self._board: Board | None = None
        self._reporter: Reporter | None = None
        self._every = 1

    def open(self, out: Path, step: int, config: TrainConfig) -> None:
        """Begins a sitting at `step`."""
        self._every = config.log_every
        if self.speaks:
            self._log = Log(out / "log.jsonl", step)
            self._board = Board(out / "tensorboard", step) if config.tensorboard else None
            self._reporter = Reporter(config.steps, step, config.log_every) if config.progress else None

    def step(self, record: dict[str, Any], seconds: float) -> None:
        """A finished step that took `seconds`."""
        step = record["step"]
        if self._log is not None:
            self._log.write(record)
        if self._reporter is not None:
            self._reporter.step(record, seconds)
        if self._board is not None and step % self._every == 0:
            self._board.write(record, step, "train")
        if self._listener is not None and self.speaks:
            self._listener(Event("step", step, "", record))

    def say(self, kind: str, step: int, text: str, values: dict[str, Any] | None = None) -> None:
        """Anything else; checkpoints are too frequent for the terminal."""
        if self._reporter is not None and kind != "checkpoint":
            self._reporter.say(text)
        if self._listener is not None and self.speaks:
            self._listener(Event(kind, step, text, values or {}))

    def evaluation(self, step: int, found: dict[str, Any]) -> None:
        """Numbers that evaluations found at `step`."""
        if self._log is not None:
            self._log.write({"step": step, "evaluation": found})
        if self._board is not None:
            self._board.write(found, step, "evaluation")
        numbers = "  ".join(f"{k} {v:.4g}" for k, v in found.items() if isinstance(v, (int, float)))
        self.say("evaluation", step, f"evaluated at step {step}  {numbers}".rstrip(), found)

    def evaluated(self, step: int) -> bool:
        """Whether the log has an evaluation of `step`."""
        return self._log is not None and step in self._log.evaluated

    def close(self) -> None:
        """Ends the sitting."""
        for part in (self._log, self._board, self._reporter):
            if part is not None:
                part.close()
        self._log = self._board = self._reporter = None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
