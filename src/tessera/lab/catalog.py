"""The catalogue: the published systems that Tessera knows, joined with the parts that implement them and their evidence.

    catalog = Catalog.load()
    catalog.systems[243].status  # of system 244

Parts are found over all sockets and joined by catalogue number. Nothing is imported for it: files are read (`lab.source`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeAlias

from tessera import registry
from tessera.errors import TesseraError, UserError
from tessera.lab import evidence as files
from tessera.lab import source as sources
from tessera.lab.claim import VERDICTS
from tessera.lab.evidence import Entry, Evidence
from tessera.lab.source import Source

Status: TypeAlias = Literal["none", "no evidence", "fresh", "stale"]
"""none: no part implements the system; no evidence: nobody has run its claims; fresh, stale: whether the evidence is about the
present code."""
STATUSES: tuple[Status, ...] = ("fresh", "stale", "no evidence", "none")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A part with its evidence; `problem` says in a sentence why evidence could not be read."""

    source: Source
    evidence: Evidence | None = None
    status: Status = "no evidence"
    problem: str = ""

    @property
    def key(self) -> str:
        """`socket/name`."""
        return f"{self.source.socket}/{self.source.name}"

    @property
    def verdicts(self) -> dict[str, int]:
        """How many claims have which verdict."""
        return {} if self.evidence is None else self.evidence.counts()

    def claims(self) -> list[Entry | sources.Stated]:
        """Results in the order of the evidence, then the claims that have none yet."""
        done = [] if self.evidence is None else self.evidence.claims
        known = {entry.id for entry in done}
        return [*done, *(c for c in self.source.claims if c.id not in known)]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A published method and the parts that implement it, mostly one."""

    work: Work
    parts: tuple[Built, ...] = ()

    @property
    def status(self) -> Status:
        """Of several parts the status that promises least; a part that makes no claims does not count beside others."""
        speaking = [p for p in self.parts if p.source.claims or p.evidence is not None or p.problem] or self.parts
        found = {part.status for part in speaking}
        worst: tuple[Status, ...] = ("stale", "no evidence", "fresh")
        return next((status for status in worst if status in found), "none")

    @property
    def verdicts(self) -> dict[str, int]:
        """Of all its parts."""
        return total(part.verdicts for part in self.parts)

    def row(self) -> dict[str, Any]:
        """The system as plain data: one entry of `tessera catalog --json`."""
        first = self.parts[0].source if self.parts else None
        row: dict[str, Any] = {
            "n": self.work.n,
            "name": self.work.name,
            "title": self.work.title,
            "kind": self.work.kind,
            "core": self.work.core,
            "socket": first and first.socket,
            "part": first and first.name,
            "status": self.status,
            "verdicts": self.verdicts,
        }
        if len(self.parts) > 1:
            row["more"] = [
                {"socket": p.source.socket, "part": p.source.name, "status": p.status, "verdicts": p.verdicts}
                for p in self.parts[1:]
            ]
        return row


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """systems: in order of their numbers; others: parts without one; problems: what could not be read, in sentences."""

    systems: tuple[System, ...]
    others: tuple[Built, ...] = ()
    problems: tuple[str, ...] = field(default=())

    @classmethod
    def load(cls, socket: str | None = None) -> Catalog:
        """Everything, or with the parts of one socket only. Raises `UserError` for an unknown socket."""
        known = works()
        by_number: dict[int, list[Built]] = {}
        others: list[Built] = []
        problems: list[str] = []
        for name in registry.SOCKETS if socket is None else (socket,):
            for built in _built(name, problems):
                number = built.source.catalog
                if number is None:
                    others.append(built)
                elif number in known:
                    by_number.setdefault(number, []).append(built)
                else:
                    problems.append(f"{built.key} names catalogue number {number}; there are 1 to {len(known)}.")
                    others.append(built)
        systems = tuple(System(work=w, parts=tuple(by_number.get(n, ()))) for n, w in known.items())
        return cls(systems=systems, others=tuple(others), problems=tuple(problems))

    def parts(self) -> list[tuple[Built, Work | None]]:
        """All parts with what they implement, by socket in the order of data, then by name."""
        found: list[tuple[Built, Work | None]] = [(part, s.work) for s in self.systems for part in s.parts]
        found += [(part, None) for part in self.others]
        return sorted(found, key=lambda pair: (registry.SOCKETS.index(pair[0].source.socket), pair[0].source.name))

    def plain(self) -> dict[str, Any]:
        """The catalogue as plain data."""
        return {"systems": [system.row() for system in self.systems], "problems": list(self.problems)}

    def find(self, word: str) -> tuple[Work | None, tuple[Built, ...]]:
        """What a person means by `word`: a part (`fopru`, `tokens/fopru`), a number (`244`), or a published name (`FoPru`).

        Raises `UserError`: nothing is called so (names the nearest), or several parts are (names them).
        """
        parts = self.parts()
        exact = [(part, work) for part, work in parts if word in (part.source.name, part.key, part.key.replace("/", "."))]
        if len(exact) > 1:
            keys = " or ".join(repr(part.key) for part, _ in exact)
            raise UserError(f"several parts are called {word!r}. Say {keys}.")
        if exact:
            return exact[0][1], (exact[0][0],)
        number = word.removeprefix("#")
        if number.isdecimal():
            if not 1 <= int(number) <= len(self.systems):
                raise UserError(f"there is no system {number}; the catalogue's numbers are 1 to {len(self.systems)}.")
            system = self.systems[int(number) - 1]
            return system.work, system.parts
        named = [s for s in self.systems if _fold(word) == _fold(s.work.name)]
        if len(named) > 1:
            numbers = " or ".join(f"{s.work.n} ({s.work.title})" for s in named)
            raise UserError(f"several systems are called {word!r}. Say the number: {numbers}.")
        if named:
            return named[0].work, named[0].parts
        raise self._unknown(word, [part.source.name for part, _ in parts])

    def _unknown(self, word: str, names: list[str]) -> UserError:
        """Nearest names; those of parts first, then published ones, also where the word is only the beginning or a piece."""
        folded = {_fold(s.work.name): s.work.name for s in self.systems}
        low = _fold(word)
        close = get_close_matches(word, names, n=2, cutoff=0.65)
        close += [name for key, name in folded.items() if len(low) > 2 and low in key][:3]
        close += [folded[key] for key in get_close_matches(low, folded, n=3, cutoff=0.65)]
        close = [name for k, name in enumerate(close) if _fold(name) not in map(_fold, close[:k])]
        hint = " or ".join(repr(name) for name in close[:4])
        said = f"Did you mean {hint}?" if hint else "`tessera list` shows the parts, `tessera catalog` all systems."
        return UserError(f"there is no part or system {word!r}. {said}")


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


def total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Verdict -> how many, over several counts, in the order of `VERDICTS`."""
    found = list(counts)
    sums = {verdict: sum(count.get(verdict, 0) for count in found) for verdict in VERDICTS}
    return {verdict: number for verdict, number in sums.items() if number}


def _built(socket: str, problems: list[str]) -> Iterator[Built]:
    """The parts of a socket; one that cannot be read is a problem, and the others still come."""
    for name in registry.names(socket):
        try:
            source = sources.read(socket, name)
        except Exception as error:
            what = " ".join(str(error).split()) or type(error).__name__
            problems.append(f"{socket}/{name} cannot be read: {what}")
            continue
        part = registry.Part(name, socket, None, source.catalog)
        try:
            found = _checked(files.read(part, source.path), files.path_of(part, source.path))
            yield Built(source=source, evidence=found, status=_status(source, found))
        except Exception as error:
            what = " ".join(str(error).split())
            sentence = what if isinstance(error, UserError) else f"the evidence of {socket}/{name} cannot be used: {what}"
            problems.append(sentence)
            yield Built(source=source, problem=sentence)


def _checked(found: Evidence | None, path: Path) -> Evidence | None:
    """The evidence, if all that should be numbers are. Raises `UserError` otherwise."""
    for entry in () if found is None else found.claims:
        numbers = [entry.seconds, *entry.seeds]
        for group in (entry.measured, entry.baseline, entry.control, entry.spread):
            numbers += group.values()
        if not all(isinstance(number, int | float) for number in numbers):
            raise UserError(
                f"the evidence in {path} is damaged (claim {entry.id!r}: no numbers); write it anew with `tessera verify`."
            )
    return found


def _status(source: Source, found: Evidence | None) -> Status:
    """As `evidence.status`, from the part's file alone where that shows all claims."""
    if found is None:
        return "no evidence"
    if {c.id for c in source.claims} != {entry.id for entry in found.claims}:
        return files.status(registry.get(source.socket, source.name), found)  # claims that code makes are seen by importing
    return "fresh" if all(_now(source, name) == value for name, value in found.hashes.items()) else "stale"


def _now(source: Source, name: str) -> str | None:
    if name == "part":
        return files.source_hash(source.path)
    if name == "lab":
        return files.lab_hash(source.path)
    return files.now(registry.Part(source.name, source.socket, None), name)


def _fold(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
