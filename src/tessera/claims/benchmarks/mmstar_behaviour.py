"""Selection by blind judges and balancing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tessera.lab.behaviour import Numbers


class FirstOption:
    """A blind judge that takes what stands first among the options, or every third time what stands second."""

    def answer_batch(self, rows: Any, max_new_tokens: int) -> Any:
        """See `Generates`."""
        import re

        said = []
        for number, (_, questions) in enumerate(rows):
            options = re.split(r"[?:,;] | or ", questions[0].rstrip("?."))[-4:]
            said.append([SimpleNamespace(text=options[number % 3 == 0])])
        return said


def behaviour() -> Numbers:
    """Blind hits, what stays, what balancing leaves, letters that are read."""
    from tessera.config import build
    from tessera.parts.benchmarks.mmstar import MMStar, read_letter

    found: dict[str, list[float] | str] = {}
    for letters in (False, True):
        part = MMStar(build(MMStar.Config, {"per_axis": 3, "letters": letters, "most": 0.25}))
        hits = part.hits((), [FirstOption()])
        found[f"hits, letters {letters}"] = [float(x) for x in hits]
        names = [f"{i.sample.index} {i.questions[0].type}" for i in part.balanced(2).items()]
        found[f"balanced, letters {letters}"] = str(names)
        kept = part.select((), [FirstOption()]).items()
        found[f"kept, letters {letters}"] = str([f"{i.sample.index} {i.questions[0].text}" for i in kept])
    found["letters"] = str([read_letter(t) for t in ("B", "(c)", "The answer is D.", "b. red", "dog", "A or B")])
    return found
