"""A sample of effects, drawn by a key such as a commit's hash: measured anew, they must come to the verdicts of the evidence."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tessera.lab import evidence as files
from tessera.lab.claims import claims_of
from tessera.lab.evidence import Entry
from tessera.lab.experiment import Claim, Experiment

if TYPE_CHECKING:
    from tessera.lab.local_lab import LocalLab


@dataclass(frozen=True, slots=True)
class Drawn:
    """A claim with the result that its evidence holds."""

    socket: str
    part: str
    claim: Claim
    before: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """A claim that was measured anew.

    agrees  whether the verdict is that of the evidence
    moved   how far the primary effect moved, in half widths of its interval; None where there is none
    """

    part: str
    socket: str
    before: Entry
    now: Entry
    agrees: bool
    moved: float | None


def draw(parts: Iterable[tuple[str, str]], key: str, budget: float, first: Sequence[str] = ()) -> list[Drawn]:
    """Effects of (socket, name) whose evidence is of the present experiment, in an order that `key` shuffles, as many as cost at
    most `budget` seconds by their evidence. Those of the parts `first` (`socket/name`) come before all others.

    One that costs more than what is left is passed over. Damaged evidence raises `UserError`.
    """
    candidates = []
    for socket, name in parts:
        found = files.read(socket, name)
        known = {claim.id: claim for claim in claims_of(socket, name)}
        for entry in found.claims if found else ():
            claim = known.get(entry.id)
            ran = entry.verdict not in ("crashed", "not run")
            if isinstance(claim, Experiment) and ran and entry.digest == claim.digest():
                candidates.append(Drawn(socket, name, claim, entry))

    def place(drawn: Drawn) -> tuple[bool, bytes]:
        part = f"{drawn.socket}/{drawn.part}"
        return part not in first, hashlib.sha256(f"{key}\x1f{part}\x1f{drawn.claim.id}".encode()).digest()

    chosen, left = [], budget
    for drawn in sorted(candidates, key=place):
        if drawn.before.seconds <= left:
            chosen.append(drawn)
            left -= drawn.before.seconds
    return chosen


def again(chosen: Sequence[Drawn], lab: LocalLab, on_claim: Callable[[Drawn, Again | None], None] | None = None) -> list[Again]:
    """Measures the claims; `on_claim` is called before and after each. Nothing is written."""
    from tessera.lab.verify import run

    found = []
    for drawn in chosen:
        if on_claim is not None:
            on_claim(drawn, None)
        now = run(drawn.socket, drawn.part, drawn.claim, lab)
        result = Again(
            part=drawn.part,
            socket=drawn.socket,
            before=drawn.before,
            now=now,
            agrees=now.verdict == drawn.before.verdict,
            moved=_moved(drawn.before, now),
        )
        found.append(result)
        if on_claim is not None:
            on_claim(drawn, result)
    return found


def _moved(before: Entry, now: Entry) -> float | None:
    if before.primary is None or now.primary is None:
        return None
    half = (before.primary.high - before.primary.low) / 2
    return abs(now.primary.value - before.primary.value) / half if half else 0.0
