"""JSON lines and JSON arrays of any length, plain or compressed: only the places of the rows stay in memory."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import tempfile
import weakref
import zlib
from array import array
from pathlib import Path
from typing import IO, Any

from tessera.data.row_reader import BadRow, Reader
from tessera.errors import UserError
from tessera.io import disk_error

MAX_ROW = 128_000_000
"""Bytes of one JSON row; a longer one is bad."""
# A gzip file may unpack to this much, and to so many times its size on top.
_FREE = 1_000_000_000
_INFLATION = 300


class JsonReader(Reader):
    """JSON lines, or the elements of a JSON array: the place of every row is known, rows are parsed when
    asked for.
    """

    def __init__(self, path: Path, images: Path, file: Path, kind: str) -> None:
        super().__init__(path, images)
        self.file, self.kind = file.absolute(), kind
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

    def __reduce__(self) -> tuple[Any, ...]:
        return JsonReader, (self.path, self.images, self.file, self.kind)

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
