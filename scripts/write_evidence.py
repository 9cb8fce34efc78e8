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

PAGE = Path(__file__).resolve().parent.parent / "docs" / "evidence.md"
HEAD = """# Evidence

What `tessera verify` measured, by part; this page is written by `scripts/write_evidence.py` from `src/tessera/evidence`. `holds`:
all of a claim's conditions are met, `partly`: some, `not reproduced`: none. An effect that does not show on the small models of
this package may show on larger ones; numbers, baselines and controls are in the files and in `tessera show NAME`. Exact claims
(parity with a naive reference or a published implementation) are counted together.
"""


def found() -> list[Evidence]:
    """All evidence beside the source, by socket."""
    pairs = [(socket, name) for socket in registry.SOCKETS for name in registry.names(socket)]
    return [read for pair in pairs if (read := evidence.read(registry.get(*pair))) is not None]


def verdicts(entries: list[Entry]) -> str:
    """ "3 hold, 1 partly": how often which verdict, most frequent first."""
    words = {"holds": "hold"}
    counts = Counter(entry.verdict for entry in entries)
    return ", ".join(f"{count} {words.get(verdict, verdict)}" for verdict, count in counts.most_common())


def page() -> str:
    """The page as it should be."""
    parts = found()
    entries = [entry for part in parts for entry in part.claims]
    lines = [HEAD]
    for kind in ("exact", "effect", "cost"):
        own = [entry for entry in entries if entry.kind == kind]
        if own:
            lines.append(f"- {kind} claims: {verdicts(own)}")
    lines += ["", "| part | no. | exact | claim | kind | verdict | seconds |", "|---|---:|---|---|---|---|---:|"]
    for part in parts:
        exact = verdicts([entry for entry in part.claims if entry.kind == "exact"])
        name, number = f"{part.socket}/{part.part}", "" if part.catalog is None else str(part.catalog)
        for entry in (e for e in part.claims if e.kind != "exact"):
            row = [name, number, exact, entry.title.replace("|", "\\|"), entry.kind, entry.verdict, f"{entry.seconds:.0f}"]
            lines.append("| " + " | ".join(row) + " |")
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
