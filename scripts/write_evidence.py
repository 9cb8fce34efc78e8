"""Writes docs/evidence.md, what every part's claims measured, from the evidence files.

python scripts/write_evidence.py            writes
python scripts/write_evidence.py --check    fails if something would change
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from tessera import registry
from tessera.errors import UserError
from tessera.io import write_text
from tessera.lab import evidence
from tessera.lab.evidence import Entry, Evidence
from tessera.lab.judge import VERDICTS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "evidence.md"
HEAD = """# Evidence

What `tessera verify` measured, by part; this page is written by `scripts/write_evidence.py` from `src/tessera/evidence`. An
effect is `supported` or `contradicted` where the interval of its primary effect lies wholly on one side of the margin,
`inconclusive` where it does not, `invalid` where the control did not fail, `not applicable` where a precondition does not hold on
the small models of this package. Exact claims (parity with a reference written from the equations) and costs hold or fail; exact
ones are counted together. Arms, controls and history are in the files, in `tessera show NAME` and on the pages of
`tessera catalog --html`.
"""


def found() -> list[Evidence]:
    """All evidence of built-in parts, by socket."""
    pairs = [(socket, name) for socket in registry.SOCKETS for name in registry.names(socket)]
    return [made for pair in pairs if (made := evidence.read(*pair, evidence.PACKAGE)) is not None]


def verdicts(entries: list[Entry]) -> str:
    """ "3 hold, 1 fails": how many have which verdict, in the order of `VERDICTS`."""
    counts = Counter(entry.verdict for entry in entries)
    return ", ".join(f"{counts[v]} {'hold' if v == 'holds' and counts[v] > 1 else v}" for v in VERDICTS if counts[v])


def effect(entry: Entry) -> str:
    """The primary effect above its margin with its interval, or a cost's counted numbers."""
    if entry.primary is None:
        return ", ".join(f"{name} {value:.3g}" for name, value in entry.measured.items())
    value, low, high = (number - entry.primary.margin for number in (entry.primary.value, entry.primary.low, entry.primary.high))
    return f"{value:+.3g} ({low:+.3g} to {high:+.3g}), {entry.units} {entry.unit}s"


def page() -> str:
    """The page as it should be."""
    parts = found()
    entries = [entry for part in parts for entry in part.claims]
    lines = [HEAD]
    for kind in ("exact", "effect", "cost"):
        own = [entry for entry in entries if entry.kind == kind]
        if own:
            lines.append(f"- {kind} claims: {verdicts(own)}")
    head = ("part", "no.", "exact", "claim", "kind", "effect above the margin, or numbers", "verdict", "seconds")
    lines += ["", "| " + " | ".join(head) + " |", "|---|---:|---|---|---|---|---|---:|"]
    for part in parts:
        exact = verdicts([entry for entry in part.claims if entry.kind == "exact"])
        name, number = f"{part.socket}/{part.part}", "" if part.catalog is None else str(part.catalog)
        rest = [entry for entry in part.claims if entry.kind != "exact"]
        cells = [[e.promise, e.kind, effect(e), e.verdict, f"{e.seconds:.0f}"] for e in rest] or [[""] * 5]
        for row in cells:
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in [name, number, exact, *row]) + " |")
            name = number = exact = ""
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        wanted = page()
    except UserError as error:
        sys.exit(str(error))
    if "--check" in sys.argv:
        sys.exit((not PAGE.is_file() or wanted != PAGE.read_text(encoding="utf-8")) and "run scripts/write_evidence.py")
    write_text(PAGE, wanted)
