"""Whether a result is fresh: measured by the present experiment, with things that behave as they do now.

Evidence is stale, claim by claim, when the experiment is another one, or when something that it was measured with (the part, a
protocol, the world, the trainer, a reference model) behaves otherwise than it did. See `tessera.lab.behaviour`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal, TypeAlias

from tessera.errors import UserError
from tessera.lab.behaviour import differences
from tessera.lab.claims import claims_of
from tessera.lab.derived import with_recipes
from tessera.lab.evidence import Entry, Evidence, goldens, read
from tessera.lab.experiment import Claim, Exact, Experiment

if TYPE_CHECKING:
    from tessera.lab.lab import Lab

Status: TypeAlias = Literal["no evidence", "fresh", "stale"]


def depends(socket: str, part: str, claim: Claim) -> list[str]:
    """Names of all behaviours that a claim's result depends on."""
    found = [f"part {socket}/{part}"]
    if isinstance(claim, Exact):
        return found
    arms = list(claim.arms().values()) if isinstance(claim, Experiment) else [claim.treatment, claim.baseline]
    found += with_recipes(claim.protocol.depends(*(arm for arm in arms if arm is not None)))
    if isinstance(claim, Experiment):
        found += ["core judge"]
        found += [name for given in claim.given for name in given.depends()]
    return list(dict.fromkeys(found))


def version_of(name: str, lab: Lab) -> str:
    """What `Entry.depends` says of a behaviour: its committed version, "changed" if it behaves otherwise, a model's weights."""
    kind, _, rest = name.partition(" ")
    if kind == "model":
        return lab.weights(rest)
    if kind == "part":
        socket, _, part = rest.partition("/")
        try:
            found = read(socket, part)
        except UserError:
            found = None
        if found is None or not found.behaviour:  # a part without claims has no file: its numbers stand with the protocols'
            return _golden_version(name, lab)
        return "changed" if differences(found.behaviour, lab.behaviour(name)) else str(found.version)
    return _golden_version(name, lab)


def _golden_version(name: str, lab: Lab) -> str:
    before = goldens().get(name)
    if before is None:
        return "none"
    return "changed" if differences(before["numbers"], lab.behaviour(name)) else str(before["version"])


def why_stale(socket: str, name: str, claim: Claim, entry: Entry | None, lab: Lab) -> list[str]:
    """Why a claim has to be run again, in words; empty if its result is fresh."""
    return reasons(claim, entry, depends(socket, name, claim), lambda dependency: version_of(dependency, lab))


def reasons(claim: Claim, entry: Entry | None, depends: Iterable[str], version: Callable[[str], str]) -> list[str]:
    """As `why_stale`; `version` says what a behaviour is now, "" where that is not known."""
    if entry is None or entry.verdict == "not run":
        return ["it was never run"]
    found = [] if claim.digest() == entry.digest else ["the experiment is another one"]
    secondary = claim.secondary if isinstance(claim, Experiment) else ()
    measured = entry.primary is not None  # nothing is where a precondition does not hold
    if measured and [effect.words for effect in secondary] != [e.words for e in entry.secondary]:
        found.append("its secondary effects are others")
    if entry.verdict == "crashed":
        found.append("it crashed")
    for dependency in depends:
        was, now = entry.depends.get(dependency), version(dependency)
        if now not in ("", was):
            found.append(f"{dependency} behaves otherwise ({was} then, {now} now)")
    return found


def status(socket: str, name: str, found: Evidence | None, lab: Lab) -> tuple[Status, dict[str, list[str]]]:
    """(fresh or not, claim -> why it is stale)."""
    if found is None or not found.ran:
        return "no evidence", {}
    entries = {entry.id: entry for entry in found.claims}
    reasons = {c.id: why for c in claims_of(socket, name) if (why := why_stale(socket, name, c, entries.get(c.id), lab))}
    return ("stale" if reasons.keys() & {e.id for e in found.claims if e.verdict != "not run"} else "fresh"), reasons
