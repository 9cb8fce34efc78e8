"""Data sets on disk as sequences of records: opened by content, read at random, in constant memory.

`read` opens JSON lines, a JSON array (LLaVA's files), both also compressed with gzip, Parquet files, or a
folder that holds one of these. Besides an index (some bytes per row, or per row group) nothing stays in
memory.

Rows are untrusted. A bad row raises `BadRow`, iteration skips and counts it. Paths in rows must lie
inside the image folder: `..`, absolute paths to elsewhere, links that lead out, and addresses make a row bad.
"""

from __future__ import annotations

import bisect
import codecs
import gzip
import json
import os
import re
import tempfile
import threading
import weakref
import zlib
from abc import ABC, abstractmethod
from array import array
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tessera.data import records
from tessera.data.records import Record
from tessera.errors import UserError
from tessera.io import disk_error

MAX_ROW = 128_000_000
"""Bytes of one JSON row; a longer one is bad."""
MAX_GROUP = 1 << 30
"""Bytes of the wanted columns in one row group of a Parquet file, unpacked."""
KEPT_GROUPS = 4
"""Row groups of a Parquet file that stay in memory, `MAX_GROUP` bytes together at most."""
# A gzip file may unpack to this much, and to so many times its size on top.
_FREE = 1_000_000_000
_INFLATION = 300
_NO_DATA = ("dataset_info.json", "dataset_infos.json", "state.json")
_COLUMNS = ("messages", "conversations", "images", "image", "id")
_DATA = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz", ".ndjson", ".ndjson.gz")


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

    def __reduce__(self) -> tuple[Any, ...]:
        return read, (self.path, self.images)


def read(path: str | Path, images: str | Path | None = None) -> Reader:
    """Opens the data set at `path`; paths in its rows are relative to `images` (default: the folder it lies
    in).

    Raises `UserError` for a path that holds no data set, or an empty one.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise UserError(f"{path}: there is no such file or folder.")
        root = Path(images) if images is not None else (path if path.is_dir() else path.parent)
        if not root.is_dir():
            raise UserError(f"the image folder {root} is not a folder.")
        files = _files(path) if path.is_dir() else [path]
        kind = _kind(files[0])
        reader: Reader
        if kind == "parquet":
            reader = ParquetReader(path, root, files)
        else:
            reader = JsonReader(path, root, files[0], kind)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}).") from error
    if len(reader) == 0:
        raise UserError(f"{path}: the data set is empty; there is not a single row in it.")
    return reader


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


class JsonReader(Reader):
    """JSON lines, or the elements of a JSON array: the place of every row is known, rows are parsed when
    asked for.
    """

    def __init__(self, path: Path, images: Path, file: Path, kind: str) -> None:
        super().__init__(path, images)
        self.file, self.kind = file, kind
        # Offset and length in bytes, and for JSON lines the number of the line.
        self._starts, self._lengths, self._lines = array("Q"), array("Q"), array("Q")
        with _plain(file) as stream:
            if kind == "lines":
                self._index_lines(stream)
            else:
                scanner = _Scanner(stream)
                while (span := scanner.element()) is not None:
                    self._add(*span)
            self._descriptor = os.dup(stream.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def __len__(self) -> int:
        return len(self._starts)

    def where(self, index: int) -> str:
        if self.kind == "lines":
            return f"{self.file.name}, line {self._lines[index]}"
        return f"{self.file.name}, entry {index + 1}"

    def row(self, index: int) -> Any:
        if self._lengths[index] > MAX_ROW:
            raise BadRow(self.where(index), f"the row is longer than {MAX_ROW:,} bytes.")
        # Positional reading: the file's own position would be shared with other threads and forked processes.
        data = os.pread(self._descriptor, self._lengths[index], self._starts[index])
        try:
            return json.loads(data.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise BadRow(self.where(index), f"the row is not UTF-8 text (byte {error.start}).") from error
        except json.JSONDecodeError as error:
            reason = f"the row is not JSON ({error.msg}, character {error.pos + 1})."
            raise BadRow(self.where(index), reason) from error
        except (ValueError, RecursionError) as error:
            raise BadRow(self.where(index), f"the row cannot be read as JSON ({error}).") from error

    def _add(self, start: int, length: int, line: int = 0) -> None:
        self._starts.append(start)
        self._lengths.append(length)
        if line:
            self._lines.append(line)

    def _index_lines(self, stream: IO[bytes]) -> None:
        stream.seek(0)
        start = len(codecs.BOM_UTF8) if stream.read(3) == codecs.BOM_UTF8 else 0
        stream.seek(start)
        line = 1
        while piece := stream.readline(1 << 20):
            length, blank = len(piece), not piece.strip()
            while not piece.endswith(b"\n") and (piece := stream.readline(1 << 20)):
                length, blank = length + len(piece), blank and not piece.strip()
            if not blank:
                self._add(start, length, line)
            start, line = start + length, line + 1


class _Scanner:
    """Byte spans of the elements of a JSON array, found in a window that holds an element at least."""

    _SPACE = re.compile(r"[\s,]*")

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream, self.json = stream, json.JSONDecoder()
        # Bytes that are no UTF-8 keep their number and make only their own row bad.
        self.decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self.text, self.at, self.offset, self.ended = "", 0, 0, False
        stream.seek(0)
        self._more()
        self._forward(self.text.index("[") + 1)

    def element(self) -> tuple[int, int] | None:
        """(start, length) of the next element; None behind the last. Broken JSON is one element, up to the
        end.
        """
        while True:
            space = self._SPACE.match(self.text, self.at)
            self._forward(space.end() if space else self.at)
            left = len(self.text) - self.at
            if self.text[self.at : self.at + 1] == "]" or (self.ended and not left):
                return None
            end = self._end()
            # A number at the window's end may go on behind it.
            if end is not None and (end < len(self.text) or self.ended):
                start = self.offset
                self._forward(end)
                return start, self.offset - start
            if self.ended or left > MAX_ROW:
                start, size = self.offset, self.stream.seek(0, os.SEEK_END)
                self.text, self.at, self.offset, self.ended = "", 0, size, True
                return start, size - start
            self._more()

    def _end(self) -> int | None:
        """Where the element that begins at `at` ends; None if it is not complete."""
        try:
            return self.json.raw_decode(self.text, self.at)[1]
        except (ValueError, RecursionError):
            return None

    def _forward(self, to: int) -> None:
        self.offset += len(self.text[self.at : to].encode("utf-8", "surrogateescape"))
        self.at = to

    def _more(self) -> None:
        """Drops what is behind and doubles what is ahead: a long element is parsed a few times only."""
        self.text = self.text[self.at :]
        part = self.stream.read(max(1 << 16, len(self.text)))
        self.text += self.decoder.decode(part, not part)
        self.at, self.ended = 0, not part


class ParquetReader(Reader):
    """Parquet files, one after the other as one data set; whole row groups are read, a few of them kept.

    Rows near each other are cheap, rows far apart cost a row group each: `blocks` says where the groups are.
    A good file has groups of some hundred rows. Raises `UserError` if a group takes more than `MAX_GROUP`.
    """

    def __init__(self, path: Path, images: Path, files: list[Path]) -> None:
        super().__init__(path, images)
        self._lock = threading.Lock()
        self._groups: list[tuple[Path, int, list[str]]] = []
        self._borders = [0]
        self._tables: OrderedDict[int, Any] = OrderedDict()
        self._damaged: dict[int, str] = {}
        for file in map(Path.absolute, files):
            with _parquet(file) as parquet:
                self._index(file, parquet)

    def _index(self, file: Path, parquet: Any) -> None:
        names = parquet.schema_arrow.names
        columns = [name for name in _COLUMNS if name in names]
        if not {"messages", "conversations"} & set(columns):
            raise UserError(f"{file}: no column is 'messages' or 'conversations', only {', '.join(names)}.")
        for number in range(parquet.metadata.num_row_groups):
            group = parquet.metadata.row_group(number)
            chunks = (group.column(i) for i in range(group.num_columns))
            size = sum(c.total_uncompressed_size for c in chunks if c.path_in_schema.split(".")[0] in columns)
            if size > MAX_GROUP:
                raise UserError(
                    f"{file}: row group {number} takes {size / 1e9:.1f} GB; at most {MAX_GROUP / 1e9:.1f} GB "
                    "are read at a time. Write the file again with smaller groups (row_group_size=500)."
                )
            if group.num_rows:
                self._groups.append((file, number, columns))
                self._borders.append(self._borders[-1] + group.num_rows)

    def __len__(self) -> int:
        return self._borders[-1]

    @property
    def blocks(self) -> list[int]:
        return self._borders

    def where(self, index: int) -> str:
        file = self._groups[bisect.bisect_right(self._borders, index) - 1][0]
        first = next(b for g, b in zip(self._groups, self._borders, strict=False) if g[0] == file)
        return f"{file.name}, row {index - first + 1}"

    def row(self, index: int) -> Any:
        group = bisect.bisect_right(self._borders, index) - 1
        with self._lock:
            if group not in self._damaged:
                try:
                    table = self._table(group)
                    return table.slice(index - self._borders[group], 1).to_pylist()[0]
                except Exception as error:  # pyarrow raises a dozen kinds of exceptions on damaged pages
                    self._damaged[group] = _line(error)
        raise BadRow(self.where(index), f"its row group is damaged ({self._damaged[group]}).")

    def _table(self, group: int) -> Any:
        if group not in self._tables:
            file, number, columns = self._groups[group]
            with _parquet(file) as parquet:
                self._tables[group] = parquet.read_row_group(number, columns=columns, use_threads=False)
        self._tables.move_to_end(group)
        while len(self._tables) > 1 and (
            len(self._tables) > KEPT_GROUPS or sum(t.nbytes for t in self._tables.values()) > MAX_GROUP
        ):
            self._tables.popitem(last=False)
        return self._tables[group]


def _parquet(file: Path) -> Any:
    try:
        import pyarrow
        from pyarrow import parquet
    except ModuleNotFoundError as error:
        raise UserError(f"{file}: Parquet files need pyarrow: pip install 'tessera-vlm[data]'") from error
    try:
        return parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{file}: the Parquet file is damaged or truncated ({_line(error)}).") from error


def _kind(file: Path) -> str:
    """ "parquet", "lines" or "array", from the first bytes. Raises `UserError` for anything else."""
    with file.open("rb") as stream:
        head = stream.read(4096)
    if head[:2] == b"\x1f\x8b":
        try:
            with gzip.open(file) as unpacked:
                head = unpacked.read(4096)
        except (OSError, EOFError, zlib.error) as error:
            raise UserError(f"{file}: the gzip file is damaged or truncated ({error}).") from error
    if head[:4] == b"PAR1":
        return "parquet"
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if start[:1] in (b"{", b"["):
        return "lines" if start[:1] == b"{" else "array"
    if not start:
        raise UserError(f"{file}: the data set is empty; there is not a single row in it.")
    what = {b"\xff\xfe": " UTF-16 text: save it as UTF-8.", b"PK": " A ZIP archive: unpack it."}
    hint = what.get(head[:2], "")
    raise UserError(f"{file} is neither JSON lines, nor a JSON array, nor Parquet (it begins with {head[:12]!r}).{hint}")


def _files(folder: Path) -> list[Path]:
    """The one data file of a folder, or all parts of a Parquet data set (train-00000-of-00003.parquet)."""
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if not file.name.endswith(_DATA) or file.name.startswith(".") or file.name in _NO_DATA:
            continue
        found.setdefault(re.sub(r"-\d+-of-\d+(?=\.parquet$)", "", file.name), []).append(file)
    if not found and (folder / "data").is_dir():
        return _files(folder / "data")
    if not found:
        raise UserError(f"{folder}: there is no data set in this folder (none of {', '.join(_DATA[:4])}).")
    if len(found) > 1:
        names = ", ".join(sorted(found)[:8])
        raise UserError(f"{folder} holds several data sets; name one of them: {names}.")
    return next(iter(found.values()))


def _plain(file: Path) -> IO[bytes]:
    """The file, or a temporary unpacked copy of a gzip file, which has no random access of its own."""
    with file.open("rb") as stream:
        compressed = stream.read(2) == b"\x1f\x8b"
    if not compressed:
        return file.open("rb")
    size, limit = 0, _FREE + _INFLATION * file.stat().st_size
    copy = tempfile.TemporaryFile(prefix="tessera-")  # noqa: SIM115 - lives as long as the reader
    try:
        with gzip.open(file) as packed:
            while part := packed.read(1 << 20):
                size += len(part)
                if size > limit:
                    raise UserError(f"{file}: the gzip file unpacks to more than {_INFLATION} times its size.")
                copy.write(part)
        copy.flush()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        copy.close()
        raise UserError(f"{file}: the gzip file is damaged or truncated ({error}).") from error
    except OSError as error:
        copy.close()
        raise disk_error(error, Path(tempfile.gettempdir()) / file.name) from error
    except UserError:
        copy.close()
        raise
    return copy


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
