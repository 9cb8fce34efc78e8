"""Parquet files, read by row groups."""

from __future__ import annotations

import bisect
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from tessera.data.row_reader import BadRow, Reader
from tessera.errors import UserError

MAX_GROUP = 1 << 30
"""Bytes of the wanted columns in one row group of a Parquet file, unpacked."""
KEPT_GROUPS = 4
"""Row groups of a Parquet file that stay in memory, `MAX_GROUP` bytes together at most."""
_COLUMNS = ("messages", "conversations", "images", "image", "id")


class ParquetReader(Reader):
    """Parquet files, one after the other as one data set; whole row groups are read, a few of them kept.

    Rows near each other are cheap, rows far apart cost a row group each: `blocks` says where the groups are.
    A good file has groups of some hundred rows. Raises `UserError` if a group takes more than `MAX_GROUP`.
    """

    def __init__(self, path: Path, images: Path, files: list[Path]) -> None:
        super().__init__(path, images)
        self._files = [file.absolute() for file in files]
        self._lock = threading.Lock()
        self._groups: list[tuple[Path, int, list[str]]] = []
        self._borders = [0]
        self._tables: OrderedDict[int, Any] = OrderedDict()
        self._damaged: dict[int, str] = {}
        for file in self._files:
            with _parquet(file) as parquet:
                try:
                    self._index(file, parquet)
                except UserError:
                    raise
                except Exception as error:  # names and sizes in damaged metadata fail only when they are asked for
                    raise UserError(f"{file}: the Parquet file is damaged ({_line(error)}).") from error

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

    def __reduce__(self) -> tuple[Any, ...]:
        return ParquetReader, (self.path, self.images, self._files)

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


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else f"{text[:157]}..."
