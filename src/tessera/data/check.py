"""Checks of a data set before it is trained on: what is wrong with its rows and images, in sentences.

Every row is read and validated and every image decoded, in bounded memory: besides the examples that are
kept, a row costs eight bytes (for finding duplicates). Nothing is written, so any number of checks may run at
once.
"""

from __future__ import annotations

import functools
import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tessera.data import records
from tessera.data.images import open_image
from tessera.data.readers import read
from tessera.data.records import Level, Problem, Record
from tessera.data.row_reader import BadRow, Reader
from tessera.errors import UserError

KINDS: dict[str, Level] = {
    "malformed row": "error",
    "unknown role": "error",
    "placeholders": "error",
    "no answer": "error",
    "empty answer": "error",
    "empty question": "warning",
    "over-long": "error",
    "unsafe path": "error",
    "missing image": "error",
    "unreadable image": "error",
    "duplicate row": "warning",
}
"""What is looked for. Errors keep a row from being trained on; warnings are for a person to judge."""
EXAMPLES = 3
_BORDERS = (64, 128, 256, 512, 1024, 2048, 4096)
_AHEAD = 32


@dataclass(slots=True)
class FaultExample:
    """One case: `where` (file and line) and what is wrong there."""

    where: str
    message: str


@dataclass(slots=True)
class CheckResult:
    """How often a kind of problem was found, with the first cases."""

    kind: str
    level: Level
    count: int = 0
    examples: list[FaultExample] = field(default_factory=list)

    def add(self, where: str, message: str) -> None:
        self.count += 1
        if len(self.examples) < EXAMPLES:
            self.examples.append(FaultExample(where, message))


@dataclass(slots=True)
class Report:
    """The result of `check`."""

    path: str
    images_folder: str
    rows: int = 0
    good_rows: int = 0
    """Rows without errors."""
    images: int = 0
    """Images of all rows; one that several rows show counts each time."""
    unit: str = "words"
    """What lengths are counted in: "words", or "tokens" if a tokenizer was given. Images are not counted."""
    limit: int | None = None
    """The longest text allowed, if there is a limit."""
    longest: int = 0
    mean: float = 0.0
    """Longest and mean length of a row's text."""
    smallest_image: tuple[int, int] | None = None
    largest_image: tuple[int, int] | None = None
    """(width, height) of the images with the fewest and the most pixels."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Readable images by the longer side in pixels: "<= 64", "<= 128", ..., "> 4096"."""
    findings: list[CheckResult] = field(default_factory=lambda: [CheckResult(k, level) for k, level in KINDS.items()])
    ok: bool = True
    """Whether there is no error."""

    def result(self, kind: str) -> CheckResult:
        """The result of a kind (a key of `KINDS`)."""
        return next(f for f in self.findings if f.kind == kind)


def check(
    path: str | Path,
    images: str | Path | None = None,
    *,
    max_tokens: int | None = None,
    count_tokens: Callable[[str], int] | None = None,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Reads the data set at `path` (as `tessera.data.readers.read` does) to the end and reports what is
    wrong.

    max_tokens a row whose text is longer is an error; None: no limit count_tokens the number of tokens of a
    text; None: words are counted threads how many decode images at a time; None: up to 4, as many as there
    are cores on_progress called now and then with (rows done, rows in all)

    Raises `UserError` only if there is no data set, or an empty one.
    """
    if max_tokens is not None and max_tokens < 1:
        raise UserError(f"the longest text allowed must be at least 1, not {max_tokens}.")
    reader = read(path, images)
    report = Report(str(path), str(reader.images), limit=max_tokens)
    report.unit = "tokens" if count_tokens else "words"
    count = count_tokens or _words
    # Rows often share their image; a path is decoded once, as long as it is among the latest.
    look = functools.lru_cache(maxsize=100_000)(_look_at_file)
    digests = array("Q")
    total, sizes = 0, Counter[str]()
    with ThreadPoolExecutor(threads or min(4, os.cpu_count() or 1)) as pool:
        for start in range(0, len(reader), _AHEAD):
            rows = range(start, min(start + _AHEAD, len(reader)))
            parsed = [_parse(reader, index) for index in rows]
            shown = [pool.submit(_look, reader, image, look) for r, _ in parsed if r for image in r.images]
            results = iter(shown)
            for index, (record, problems) in zip(rows, parsed, strict=True):
                digests.append(_digest(record) if record else 0)
                if record is not None:
                    length = count(_text(record))
                    total, report.longest = total + length, max(report.longest, length)
                    if max_tokens is not None and length > max_tokens:
                        text = f"{length:,} {report.unit}, {length - max_tokens:,} more than {max_tokens:,}"
                        problems.append(Problem("over-long", text))
                    for _ in record.images:
                        _tally(report, sizes, next(results).result(), problems)
                report.rows += 1
                report.good_rows += not any(KINDS[p.kind] == "error" for p in problems)
                for problem in problems:
                    report.result(problem.kind).add(reader.where(index), problem.message)
            if on_progress is not None:
                on_progress(report.rows, len(reader))
    for first, again in _duplicates(digests):
        report.result("duplicate row").add(reader.where(again), f"the same as {reader.where(first)}")
    labels = [*(f"<= {border}" for border in _BORDERS), f"> {_BORDERS[-1]}"]
    report.sizes = {label: sizes[label] for label in labels}
    report.mean = total / max(1, report.rows)
    report.ok = not any(f.count and f.level == "error" for f in report.findings)
    return report


def _parse(reader: Reader, index: int) -> tuple[Record | None, list[Problem]]:
    """The row's record (contents as parts, images as the row has them) and what is wrong with it; None if it
    has no shape.
    """
    try:
        record = records.parse(reader.row(index))
        problems = records.validate(record)
        return records.normalise(record), problems
    except BadRow as bad:
        return None, [Problem("malformed row", bad.reason)]
    except UserError as error:
        return None, [Problem("malformed row", str(error))]


def _look(reader: Reader, image: Any, look: Callable[[Path], Any]) -> tuple[int, int] | Problem:
    """(width, height) of an image of a row, or what is wrong with it."""
    try:
        located = reader.locate(image)
    except UserError as error:
        return Problem("unsafe path", str(error))
    found: tuple[int, int] | Problem = look(located) if isinstance(located, Path) else _decode(located)
    return found


def _look_at_file(path: Path) -> tuple[int, int] | Problem:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        return Problem("missing image", f"{path} {what}")
    return _decode(path)


def _decode(source: Any) -> tuple[int, int] | Problem:
    try:
        return open_image(source).size
    except UserError as error:
        return Problem("unreadable image", str(error))


def _tally(report: Report, sizes: Counter[str], result: tuple[int, int] | Problem, problems: list[Problem]) -> None:
    report.images += 1
    if isinstance(result, Problem):
        problems.append(result)
        return
    longer = max(result)
    sizes[next((f"<= {border}" for border in _BORDERS if longer <= border), f"> {_BORDERS[-1]}")] += 1
    pixels = result[0] * result[1]
    if report.smallest_image is None or pixels < report.smallest_image[0] * report.smallest_image[1]:
        report.smallest_image = result
    if report.largest_image is None or pixels > report.largest_image[0] * report.largest_image[1]:
        report.largest_image = result


def _text(record: Record) -> str:
    parts = (part for message in record.messages for part in message["content"])
    return " ".join(part["text"] for part in parts if part["type"] == "text")


def _words(text: str) -> int:
    return len(text.split())


def _digest(record: Record) -> int:
    """64 bits of what the row says and shows; never 0, which stands for a row without a record."""
    digest = hashlib.blake2b(digest_size=8)
    for message in record.messages:
        digest.update(repr((message["role"], message["content"])).encode("utf-8", "surrogatepass"))
    for image in record.images:
        digest.update(image if isinstance(image, bytes) else repr(image).encode("utf-8", "surrogatepass"))
        digest.update(b"\0")
    return int.from_bytes(digest.digest()) or 1


def _duplicates(digests: array[int]) -> Iterator[tuple[int, int]]:
    """(first row, later row) for every row that repeats an earlier one, later rows in order."""
    values = np.frombuffer(digests, dtype=np.uint64)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    repeats = np.flatnonzero((ordered[1:] == ordered[:-1]) & (ordered[1:] != 0)) + 1
    starts = np.searchsorted(ordered, ordered[repeats])
    for place in np.argsort(order[repeats]):
        yield int(order[starts[place]]), int(order[repeats[place]])
