"""Limits of what a client may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tessera.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Every limit is at least 1; raises `UserError` otherwise.

    body         bytes of a request's body
    image_bytes  bytes of one image, encoded
    pixels       pixels of one image, decoded
    images       images of one request
    characters   characters of text of one request
    tokens       tokens of one answer; also what is generated when a request names no number
    seconds      from a request's arrival to its last token, the wait in the queue included
    upload       seconds that a request's body may take to arrive
    waiting      requests that may be here besides the one that runs: more are told to come again (429)
    """

    body: int = 32_000_000
    image_bytes: int = 20_000_000
    pixels: int = 40_000_000
    images: int = 16
    characters: int = 200_000
    tokens: int = 512
    seconds: float = 120.0
    upload: float = 30.0
    waiting: int = 32

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise UserError(f"the limit {field.name} must be above 0, not {value}.")
