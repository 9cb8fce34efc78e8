"""The contract of a data set on disk: a sequence of records, good and bad rows, and images that must lie in a folder."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tessera.data import records
from tessera.data.records import Record
from tessera.errors import UserError


class BadRow(UserError):
    """A row that cannot be used: `where` it stands and the `reason`."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where, self.reason = where, reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.reason)


@dataclass(slots=True)
class Skipped:
    """Bad rows that an iteration passed over: how many, and the first of them."""

    count: int = 0
    first: list[BadRow] = field(default_factory=list)

    def add(self, bad: BadRow, keep: int = 20) -> None:
        self.count += 1
        if len(self.first) < keep:
            self.first.append(bad)


class Reader(ABC):
    """Rows of a data set: `len(reader)` of them, good and bad; `reader[i]` is a `Record`, or raises `BadRow`.

    In the record, paths of images are absolute and checked to lie in `images`; whether the files exist is
    seen when they are opened. Iterating gives the good records and counts the others in `skipped`. Threads
    and forked processes may share a reader; a pickled one opens its files again.
    """

    path: Path
    images: Path
    skipped: Skipped

    def __init__(self, path: Path, images: Path) -> None:
        self.path, self.images, self.skipped = path.absolute(), images.resolve(), Skipped()

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def row(self, index: int) -> Any:
        """The raw row 0 <= index < len(self). Raises `BadRow`."""

    @abstractmethod
    def where(self, index: int) -> str:
        """Where row `index` stands, for people."""

    @property
    def blocks(self) -> list[int]:
        """Borders (0, ..., len(self)) of stretches of rows that are cheap to read one after the other."""
        return [0, len(self)]

    def __getitem__(self, index: int) -> Record:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        row = self.row(index)
        try:
            record = records.normalise(records.parse(row))
            record.images = [self.locate(image) for image in record.images]
        except UserError as error:
            raise BadRow(self.where(index), str(error)) from error
        return record

    def __iter__(self) -> Iterator[Record]:
        self.skipped = Skipped()
        for index in range(len(self)):
            try:
                yield self[index]
            except BadRow as bad:
                self.skipped.add(bad)

    def locate(self, image: Any) -> Any:
        """An image of a row, a path made absolute. Raises `UserError` if it leads out of the image folder."""
        return inside(self.images, image) if isinstance(image, str) and image[:5].lower() != "data:" else image


def inside(root: Path, path: str) -> Path:
    """The absolute path of `path` in folder `root`, links followed. Raises `UserError` if it leads out."""
    shown = path if len(path) <= 120 else f"{path[:117]}..."
    if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", path):
        raise UserError(f"the image {shown} is an address; nothing is downloaded.")
    if not path or "\0" in path:
        raise UserError(f"the path of an image is {'empty' if not path else 'not a path'}.")
    if ".." in re.split(r"[/\\]", path):
        raise UserError(f"the path {shown} of an image holds '..'; it must lie inside the image folder.")
    top = os.path.realpath(root)
    try:
        real = os.path.realpath(os.path.join(top, path))
    except OSError as error:
        raise UserError(f"the path {shown} of an image cannot be followed ({error.strerror}).") from error
    if os.path.commonpath([top, real]) != top:
        raise UserError(f"the path {shown} of an image leads out of the image folder {root}.")
    return Path(real)
