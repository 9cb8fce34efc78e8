"""What `tessera verify` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from tessera.lab.sample import Again

STYLES = {"holds": "green", "partly": "yellow", "not reproduced": "red", "crashed": "bold red", "not applicable": "dim"}


def table(parts: Sequence[Mapping[str, Any]]) -> RenderableType:
    """One row per claim, and below what it came to."""
    from rich.console import Group
    from rich.text import Text

    made = _table("part", "claim", "measured", "baseline", "control", "verdict")
    made.add_column("s", justify="right")
    counts: dict[str, int] = {}
    for part in parts:
        for entry in part["claims"]:
            verdict, spread = entry["verdict"], entry["spread"]
            counts[verdict] = counts.get(verdict, 0) + 1
            made.add_row(
                Text(part["part"]),
                Text.assemble(entry["title"], (f" ({entry['kind']})", "dim")),
                _numbers(entry["measured"], spread),
                _numbers(entry["baseline"], _of("baseline", spread)),
                _numbers(entry["control"], _of("control", spread)),
                _verdict(entry),
                Text(f"{entry['seconds']:.1f}"),
            )
    said = ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "no claims"
    seconds = sum(entry["seconds"] for part in parts for entry in part["claims"])
    written = [part["written"] for part in parts if part.get("written")]
    lines = [f"{said}; {seconds:.0f} s", *(f"written: {path}" for path in written)]
    return Group(made, Text("\n".join(lines), style="dim"))


def freshness(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The parts whose evidence is not fresh, with what has changed, and how many are."""
    from rich.console import Group
    from rich.text import Text

    made = _table("part", "evidence", "changed since")
    for row in rows:
        if row["status"] != "fresh":
            made.add_row(Text(f"{row['socket']}/{row['part']}"), Text(row["status"]), Text(", ".join(row["changed"])))
    fresh = sum(row["status"] == "fresh" for row in rows)
    end = Text(f"{fresh} of {len(rows)} parts with claims have fresh evidence.")
    if fresh == len(rows):
        return end
    return Group(made, end, Text("Measure again what is not: tessera verify --stale", style="dim"))


def sampled(found: Sequence[Again]) -> RenderableType:
    """Verdicts of evidence beside those of now."""
    from rich.text import Text

    made = _table("part", "claim", "evidence", "now", "moved most")
    made.add_column("s", justify="right")
    for result in found:
        moved = "" if result.apart is None else f"{result.apart[0]} by {100 * result.apart[1]:.2g} %"
        made.add_row(
            Text(f"{result.socket}/{result.part}"),
            Text(result.now.title),
            Text(result.before.verdict, style=STYLES[result.before.verdict]),
            Text(
                result.now.verdict + (f": {result.now.note}" if result.now.verdict == "crashed" else ""),
                style="" if result.agrees else "bold red",
            ),
            Text(moved),
            Text(f"{result.now.seconds:.1f}"),
        )
    return made


def _table(*columns: str) -> Table:
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made


def _verdict(entry: Mapping[str, Any]) -> Text:
    from rich.text import Text

    verdict = entry["verdict"]
    missed = [what for what, met in entry["checks"].items() if not met]
    text = verdict
    if verdict == "partly":
        text = f"partly (not: {'; '.join(missed)})"
    if verdict == "crashed":
        text = f"crashed: {entry['note']}"
    return Text(text, style=STYLES[verdict])


def _of(role: str, spread: Mapping[str, float]) -> dict[str, float]:
    """The spreads of one role, by the names of its numbers."""
    return {name.removeprefix(f"{role} "): value for name, value in spread.items() if name.startswith(f"{role} ")}


def _numbers(values: Mapping[str, float], spread: Mapping[str, float]) -> Text:
    from rich.text import Text

    return Text(
        "\n".join(f"{name} {value:.4g}" + (f" ± {spread[name]:.2g}" if name in spread else "") for name, value in values.items())
    )
