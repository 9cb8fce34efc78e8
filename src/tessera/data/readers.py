"""Data sets on disk as sequences of records: opened by content, read at random, in constant memory.

`read` opens JSON lines, a JSON array (LLaVA's files), both also compressed with gzip, Parquet files, or a
folder that holds one of these. Besides an index (some bytes per row, or per row group) nothing stays in
memory.

Rows are untrusted. A bad row raises `BadRow`, iteration skips and counts it. Paths in rows must lie
inside the image folder: `..`, absolute paths to elsewhere, links that lead out, and addresses make a row bad.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from pathlib import Path

from tessera.data.json_reader import JsonReader
from tessera.data.parquet_reader import ParquetReader
from tessera.data.row_reader import Reader
from tessera.errors import UserError

_NO_DATA = ("dataset_info.json", "dataset_infos.json", "state.json")
_DATA = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz", ".ndjson", ".ndjson.gz")


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
