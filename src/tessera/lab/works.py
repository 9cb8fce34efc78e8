"""The published systems that Tessera knows, as they ship: `catalog.json`, which `scripts/build_catalog.py` makes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources

from tessera.errors import TesseraError

_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Link:
    """An address and what is there: "paper", "code", "project page" ..."""

    label: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A published method, or a survey (`system` False).

    n      its number, from 1, used everywhere
    core   1 to 5: how near it is to the heart of vision-language modelling
    about  one sentence, or ""
    """

    n: int
    name: str
    title: str
    kind: str
    core: int
    system: bool
    about: str
    links: tuple[Link, ...]


@cache
def works() -> dict[int, Work]:
    """The published systems by number, as shipped."""
    text = (resources.files("tessera.lab") / "catalog.json").read_text(encoding="utf-8")
    return {work.n: work for work in parse(text)}


def parse(text: str) -> list[Work]:
    """Reads the shipped file. Raises `TesseraError` for a damaged one."""
    try:
        plain = json.loads(text)
        if plain["format"] != _FORMAT:
            raise ValueError(f"format {plain['format']}, not {_FORMAT}")
        return [Work(**{**row, "links": tuple(Link(**link) for link in row["links"])}) for row in plain["systems"]]
    except (ValueError, KeyError, TypeError) as error:
        raise TesseraError(f"the catalogue that ships with tessera is damaged ({error}); install tessera-vlm anew.") from error
