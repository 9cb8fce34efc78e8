"""A sample of effect claims, drawn by a key such as a commit's hash: run anew, they must come to the verdicts of the evidence."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tessera import registry
from tessera.lab import evidence as files
from tessera.lab.claim import Claim, claims_of
from tessera.lab.evidence import Entry

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


@dataclass(frozen=True, slots=True)
class Drawn:
    """A claim with the result that its evidence holds."""

    part: registry.Part
    claim: Claim
    before: Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """A claim that was run anew.

    agrees  whether the verdict is that of the evidence
    apart   name of the measured number that moved most, and by how much, as a share of what the evidence says
    """

    part: str
    socket: str
    before: Entry
    now: Entry
    agrees: bool
    apart: tuple[str, float] | None


def draw(parts: Iterable[registry.Part], key: str, budget: float) -> list[Drawn]:
    """Effect claims with evidence in an order that `key` shuffles, as many as cost at most `budget` seconds by their evidence.

    One that costs more than what is left is passed over. Claims that crashed, do not apply, or changed since are no candidates;
    damaged evidence raises `UserError`.
    """
    candidates = []
    for part in parts:
        found = files.read(part)
        if found is None or files.status(part, found) != "fresh":
            continue
        known = {claim.id: claim for claim in claims_of(part)}
        for entry in found.claims:
            if entry.kind == "effect" and entry.verdict not in ("crashed", "not applicable"):
                candidates.append(Drawn(part, known[entry.id], entry))
    candidates.sort(key=lambda d: hashlib.sha256(f"{key}\x1f{d.part.socket}/{d.part.name}\x1f{d.claim.id}".encode()).digest())
    chosen, left = [], budget
    for drawn in candidates:
        if drawn.before.seconds <= left:
            chosen.append(drawn)
            left -= drawn.before.seconds
    return chosen


def again(chosen: Sequence[Drawn], lab: Lab, on_claim: Callable[[Drawn, Again | None], None] | None = None) -> list[Again]:
    """Runs the claims; `on_claim` hears of each before and after."""
    from tessera.lab.verify import run

    found = []
    for drawn in chosen:
        if on_claim is not None:
            on_claim(drawn, None)
        now = run(drawn.claim, lab)
        result = Again(
            part=drawn.part.name,
            socket=drawn.part.socket,
            before=drawn.before,
            now=now,
            agrees=now.verdict == drawn.before.verdict,
            apart=_apart(drawn.before, now),
        )
        found.append(result)
        if on_claim is not None:
            on_claim(drawn, result)
    return found


def _apart(before: Entry, now: Entry) -> tuple[str, float] | None:
    moved = {
        name: abs(now.measured[name] - value) / max(abs(value), 1e-9)
        for name, value in before.measured.items()
        if name in now.measured
    }
    return max(moved.items(), key=lambda pair: pair[1]) if moved else None
