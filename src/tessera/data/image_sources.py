"""Images as bytes: from a path, a data: URL, bytes or a stream, and no more of them than the limit."""

from __future__ import annotations

import base64
import binascii
import os
import re
import urllib.parse
from pathlib import Path
from typing import Any, BinaryIO

from tessera.errors import TesseraError, UserError


def read_source(source: Any, max_bytes: int) -> tuple[str, bytes]:
    """What to call the source in a sentence, and its bytes, at least one and at most `max_bytes`. Raises `UserError`."""
    if isinstance(source, (str, Path)):
        text = str(source)
        if text[:5].lower() == "data:":
            name, data = "the data: URL", _data_url(text, max_bytes)
        elif re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", text) and isinstance(source, str):
            raise UserError(f"{short(text)} is an address, and nothing is downloaded: save the image and give its path.")
        else:
            name, data = short(text), _read_file(text, max_bytes)
    elif isinstance(source, (bytes, bytearray, memoryview)):
        name, data = "the image given as bytes", bytes(source)
    elif hasattr(source, "read"):
        name, data = "the image stream", _read_stream(source, max_bytes)
    else:
        raise UserError(
            f"an image must be a path, a data: URL, bytes, a binary stream or a PIL image; got {type(source).__name__}."
        )
    if not data:
        raise UserError(f"{name}: the file is empty (0 bytes); an image was expected.")
    if len(data) > max_bytes:
        raise UserError(f"{name}: the file is longer than the limit of {max_bytes:,} bytes.")
    return name, data


def _read_file(path: str, max_bytes: int) -> bytes:
    name = short(path)
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > max_bytes:
                raise UserError(f"{name}: the file has {size:,} bytes; the limit is {max_bytes:,}.")
            return stream.read(max_bytes + 1)
    except FileNotFoundError:
        raise UserError(f"{name}: there is no such file.") from None
    except IsADirectoryError:
        raise UserError(f"{name} is a folder; an image file was expected.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(f"{name}: the file cannot be read ({reason}).") from error


def _read_stream(stream: BinaryIO, max_bytes: int) -> bytes:
    parts: list[bytes] = []
    left = max_bytes + 1
    try:
        while left > 0 and (part := stream.read(min(left, 1 << 20))):
            if not isinstance(part, bytes):
                raise UserError("the image stream gives text; open it in binary mode ('rb').")
            parts.append(part)
            left -= len(part)
    except (OSError, ValueError) as error:
        if isinstance(error, TesseraError):
            raise
        raise UserError(f"the image stream cannot be read ({error}).") from error
    return b"".join(parts)


def _data_url(url: str, max_bytes: int) -> bytes:
    """The payload of `data:[<type>][;base64],<data>` (RFC 2397)."""
    head, comma, body = url.partition(",")
    if not comma:
        raise UserError("the data: URL has no comma; it should look like data:image/png;base64,iVBORw0...")
    if len(body) > 3 * max_bytes + 4:
        raise UserError(f"the data: URL is longer than the limit of {max_bytes:,} bytes allows.")
    try:
        data = urllib.parse.unquote_to_bytes(body)
        if head.lower().endswith(";base64"):
            data = b"".join(data.split())
            return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
        return data
    except (binascii.Error, ValueError) as error:
        raise UserError(f"the data: URL is not valid base64 ({error}).") from error


def short(text: str, limit: int = 200) -> str:
    """At most `limit` characters of a text, for a sentence."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
