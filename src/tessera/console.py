"""What commands share: results go to stdout, everything else (progress, notes, errors) to stderr.

A command that offers `--json` writes exactly one JSON value to stdout, so that its output can be piped.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from tessera.config import to_dict
from tessera.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.progress import Progress

T = TypeVar("T")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value to stdout.", show_default=False)]


_PIPED = 160
"""Columns of tables where there is no terminal that says how many it has."""


@functools.cache
def out() -> Console:
    """The console for results (stdout). Lines are not wrapped when the output is piped, and tables have room there."""
    from rich.console import Console

    piped = not sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=piped, width=_PIPED if piped and "COLUMNS" not in os.environ else None)


@functools.cache
def err() -> Console:
    """The console for progress, notes and errors (stderr)."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


def note(text: str) -> None:
    """One dimmed line on stderr: a fallback taken, a file written. `text` is plain, not markup."""
    err().print(text, style="dim", markup=False)


def emit(value: T, as_json: bool, render: Callable[[T], RenderableType]) -> None:
    """Prints a command's result: `value` as JSON, or what `render` makes of it (a string, a table).

    `value` may hold dataclasses, mappings, sequences, paths and numpy scalars; NaN and infinity become null.
    A string that `render` returns is printed as it is, without rich markup.
    """
    if as_json:
        sys.stdout.write(to_json(value) + "\n")
        sys.stdout.flush()
        return
    rendered = render(value)
    out().print(rendered, markup=False)


def to_json(value: Any) -> str:
    """Strict JSON (no NaN), indented, non-ASCII text as it is."""
    return json.dumps(_plain(to_dict(value)), indent=2, ensure_ascii=False, allow_nan=False)


def progress() -> Progress:
    """Progress bars on stderr with elapsed and remaining time; silent when stderr is not a terminal.

    with progress() as bars:
        task = bars.add_task("evaluating", total=5000)
        bars.advance(task, 64)
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=err(), transient=True, disable=not err().is_terminal)


def missing_package(error: ModuleNotFoundError) -> UserError | None:
    """The sentence for a module that an extra brings: which package is wanted, and how to install it.

    None if no extra brings it: then the import is a fault of ours.
    """
    module = (error.name or "").partition(".")[0]
    for package, extra in _extras().items():
        if module and module in (package.replace("-", "_"), package.replace("-", "_").removesuffix("_torch")):
            return UserError(f"this needs the package {package!r}. Install it with: pip install 'tessera-vlm[{extra}]'")
    return None


def _extras() -> dict[str, str]:
    """Optional package -> the extra that brings it, as the installed distribution declares them."""
    try:
        requirements = importlib.metadata.requires("tessera-vlm") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([\w.-]+).*extra == ['\"](\w+)['\"]", r) for r in requirements)
    return {m[1]: m[2] for m in found if m and m[2] not in ("all", "dev")}


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return _plain(value.tolist())
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
