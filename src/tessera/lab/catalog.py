"""The catalogue: the published systems that Tessera knows, joined with the parts that implement them, their claims and evidence.

    catalog = Catalog.load()
    catalog.systems[243].status  # of system 244

Parts are found over all sockets and joined by catalogue number. No part is imported for it: files are read (`lab.source`), and
claims files load no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Literal, TypeAlias

from tessera import registry
from tessera.errors import TesseraError, UserError
from tessera.lab import claims as claiming
from tessera.lab import evidence as files
from tessera.lab import freshness
from tessera.lab import source as sources
from tessera.lab.evidence import Entry, Evidence
from tessera.lab.experiment import Claim
from tessera.lab.judge import VERDICTS
from tessera.lab.lab import Lab
from tessera.lab.source import Source
from tessera.lab.works import Work, works

Status: TypeAlias = Literal["none", "no claims", "no evidence", "fresh", "stale"]
"""none: no part implements the system; no claims: a part that promises nothing; no evidence: nobody has run its claims; fresh,
stale: whether the evidence is about the present experiments and behaviour."""
STATUSES: tuple[Status, ...] = ("fresh", "stale", "no evidence", "no claims", "none")


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """A part with its claims and evidence.

    about    what its claims file says of itself
    reasons  id of a claim -> why its result is stale, in words
    problem  why claims or evidence could not be read, in a sentence
    """

    source: Source
    claims: tuple[Claim, ...] = ()
    about: str = ""
    evidence: Evidence | None = None
    status: Status = "no claims"
    reasons: Mapping[str, list[str]] = field(default_factory=dict)
    problem: str = ""

    @property
    def key(self) -> str:
        """`socket/name`."""
        return f"{self.source.socket}/{self.source.name}"

    @property
    def verdicts(self) -> dict[str, int]:
        """How many claims have which verdict; those without a result are "not run"."""
        found = [("not run" if entry is None else entry.verdict) for _, entry in self.results()]
        return {verdict: found.count(verdict) for verdict in VERDICTS if verdict in found}

    def results(self) -> list[tuple[Claim | None, Entry | None]]:
        """Claims with their results, in the order of the claims file, then results whose claim is made no longer."""
        entries = {} if self.evidence is None else {entry.id: entry for entry in self.evidence.claims}
        found: list[tuple[Claim | None, Entry | None]] = [(claim, entries.pop(claim.id, None)) for claim in self.claims]
        return [*found, *((None, entry) for entry in entries.values())]


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A published method and the parts that implement it, mostly one."""

    work: Work
    parts: tuple[Built, ...] = ()

    @property
    def status(self) -> Status:
        """Of several parts the status that promises least; a part that makes no claims does not count beside others."""
        found = {part.status for part in self.parts}
        worst: tuple[Status, ...] = ("stale", "no evidence", "fresh", "no claims")
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
    problems: tuple[str, ...] = ()

    @classmethod
    def load(cls, socket: str | None = None, lab: Lab | None = None) -> Catalog:
        """Everything, or with the parts of one socket only.

        Without `lab` evidence is fresh by what is written down: the same experiments, the same recorded versions of what they
        were measured with. With it the behaviour itself is computed and compared, which takes minutes. Raises `UserError` for an
        unknown socket.
        """
        known = works()
        by_number: dict[int, list[Built]] = {}
        others: list[Built] = []
        problems: list[str] = []
        for name in registry.SOCKETS if socket is None else (socket,):
            for built in _built(name, problems, lab):
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


def total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Verdict -> how many, over several counts, in the order of `VERDICTS`."""
    found = list(counts)
    sums = {verdict: sum(count.get(verdict, 0) for count in found) for verdict in VERDICTS}
    return {verdict: number for verdict, number in sums.items() if number}


def _built(socket: str, problems: list[str], lab: Lab | None) -> Iterator[Built]:
    """The parts of a socket; one that cannot be read is a problem, and the others still come."""
    for name in registry.names(socket):
        try:
            source = sources.read(socket, name)
        except Exception as error:
            problems.append(f"{socket}/{name} cannot be read: {_said(error)}")
            continue
        claims: tuple[Claim, ...] = ()
        try:
            claims = tuple(claiming.claims_of(socket, name))
            found = files.read(socket, name, source.path)
            status, reasons = _status(socket, name, claims, found, lab)
            yield Built(
                source=source,
                claims=claims,
                about=claiming.about(socket, name),
                evidence=found,
                status=status,
                reasons=reasons,
            )
        except Exception as error:
            sentence = str(error) if isinstance(error, UserError) else f"the claims of {socket}/{name} fail: {_said(error)}"
            problems.append(sentence)
            yield Built(source=source, claims=claims, status="no evidence", problem=sentence)


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _status(
    socket: str, name: str, claims: tuple[Claim, ...], found: Evidence | None, lab: Lab | None
) -> tuple[Status, dict[str, list[str]]]:
    if found is None or (claims and not found.ran):
        return ("no evidence" if claims else "no claims"), {}
    if lab is not None:
        return freshness.status(socket, name, found, lab)
    entries = {entry.id: entry for entry in found.claims}
    reasons = {c.id: why for c in claims if (why := recorded(socket, name, c, entries.get(c.id), found))}
    ran = {entry.id for entry in found.claims if entry.verdict != "not run"}
    return ("stale" if reasons.keys() & ran else "fresh"), reasons  # a claim that waits for its first run makes nothing stale


def recorded(socket: str, name: str, claim: Claim, entry: Entry | None, found: Evidence) -> list[str]:
    """Why a result is stale as far as files tell: another experiment, a crash, another recorded version of what it depends on.

    As `freshness.why_stale`, which computes the behaviour; weights of models are not looked at here.
    """

    def version(dependency: str) -> str:
        return str(found.version) if dependency == f"part {socket}/{name}" else _version(dependency)

    return freshness.reasons(claim, entry, () if entry is None else entry.depends, version)


def _version(dependency: str) -> str:
    """The recorded version of a behaviour; "" where files do not tell."""
    kind, _, rest = dependency.partition(" ")
    if kind in ("protocol", "core"):
        return str(files.goldens().get(dependency, {}).get("version", ""))
    if kind == "part":
        socket, _, part = rest.partition("/")
        try:
            other = files.read(socket, part, sources.read(socket, part).path)  # the path given: nothing is imported for it
        except (UserError, TesseraError):
            return ""
        return "" if other is None or not other.behaviour else str(other.version)
    return ""


def _fold(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
