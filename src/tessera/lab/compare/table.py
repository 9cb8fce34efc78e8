"""The numbers of a comparison in words, for the terminal and for the page."""

from __future__ import annotations

from tessera.lab.compare.comparison import Comparison, Contender, Kind

HEADS = ("right", "interval", "against none", "visual tokens", "GFLOPs", "times faster", "from – to", "ms", "parameters")
"""What `cells` tells of a contender."""


def label(row: Contender) -> str:
    """The contender's name, with its budget where there is one."""
    if row.budget is None:
        return row.name
    return f"{row.name} {row.budget:g}" if row.budget <= 1 else f"{row.name}, {row.budget:g} steps"


def cells(row: Contender) -> list[str]:
    """One for each of `HEADS`; empty where there is no such number."""
    against = row.against
    return [
        f"{percent(row.accuracy)} %",
        f"{percent(row.low)} – {percent(row.high)}",
        "" if against is None else f"{100 * against.value:+.1f} ({100 * against.low:+.1f} to {100 * against.high:+.1f})",
        "" if row.tokens is None else f"{row.tokens:.4g}",
        f"{row.flops / 1e9:.4g}",
        f"{row.time.median:.2f}",
        f"{row.time.low:.2f} – {row.time.high:.2f}",
        f"{row.milliseconds:.4g}",
        f"{row.parameters / 1e6:.2f} M",
    ]


def percent(share: float) -> str:
    """`81.7`."""
    return f"{100 * share:.1f}"


def kinds(found: Comparison) -> list[str]:
    """All question types, in the order in which contenders were asked them."""
    return list(dict.fromkeys(kind for row in found.rows for kind in row.types))


def of_kind(kind: Kind) -> tuple[str, str]:
    """Percent of right answers to one question type, and half of its interval: `70`, `± 10`."""
    return f"{100 * kind.accuracy:.0f}", f"± {100 * (kind.high - kind.low) / 2:.0f}"


def figures(found: Comparison) -> list[tuple[str, str, str]]:
    """(what, number, unit) of the plain model."""
    plain = found.rows[0]
    return [
        ("accuracy of the plain model", percent(plain.accuracy), f"± {percent((plain.high - plain.low) / 2)} %"),
        ("GFLOPs of an answer", f"{plain.flops / 1e9:.3g}", ""),
        ("milliseconds", f"{plain.milliseconds:.3g}", ""),
        ("parameters", f"{plain.parameters / 1e6:.1f}", "M"),
    ]
