"""What `tessera verify` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from tessera.lab.sample import Again

STYLES = {
    "supported": "green",
    "holds": "green",
    "inconclusive": "yellow",
    "contradicted": "red",
    "fails": "red",
    "invalid": "magenta",
    "not applicable": "dim",
    "crashed": "bold red",
    "not run": "dim",
}


def table(parts: Sequence[Mapping[str, Any]]) -> RenderableType:
    """One row per claim, and below what it came to."""
    from rich.console import Group
    from rich.text import Text

    made = table_of("part", "claim", "arms", "effect", "verdict")
    made.add_column("s", justify="right")
    for part in parts:
        for entry in part["claims"]:
            made.add_row(
                Text(part["part"]),
                Text.assemble(entry["promise"], (f" ({entry['kind']})", "dim")),
                arms(entry),
                effect(entry),
                verdict(entry),
                Text(f"{entry['seconds']:.1f}"),
            )
    lines = [f"{kind}: {said}" for kind in ("effect", "exact", "cost") if (said := _said(parts, kind))]
    seconds = sum(entry["seconds"] for part in parts for entry in part["claims"])
    return Group(made, Text("\n".join([*lines, f"{seconds:.0f} s in all"]), style="dim"))


def _said(parts: Sequence[Mapping[str, Any]], kind: str) -> str:
    found = [entry["verdict"] for part in parts for entry in part["claims"] if entry["kind"] == kind]
    return ", ".join(f"{found.count(verdict)} {verdict}" for verdict in STYLES if verdict in found)


def arms(entry: Mapping[str, Any]) -> Text:
    """Means of the arms in the claim's metric, or what an exact claim or a cost measured."""
    from rich.text import Text

    metric = entry.get("metric", "")
    lines = [f"{arm['name']} {arm['metrics'][metric][0]:.4g}" for arm in entry.get("arms", ()) if metric in arm["metrics"]]
    lines += [f"{name} {value:.4g}" for name, value in entry.get("measured", {}).items()]
    lines += [f"{name} {v[0]:.3g} ({v[1]:.3g} to {v[2]:.3g})" for name, v in entry.get("timed", {}).items()]
    return Text("\n".join(lines))


def effect(entry: Mapping[str, Any]) -> Text:
    """The primary effect with its interval, margin and units."""
    from rich.text import Text

    found = entry.get("primary")
    if found is None:
        return Text("")
    value, low, high = (found[name] - found["margin"] for name in ("value", "low", "high"))
    text = f"{value:+.3g} ({low:+.3g} to {high:+.3g})"
    return Text(f"{text}\n{found['words']}\n{entry.get('units', 0)} {entry.get('unit', '')}s")


def verdict(entry: Mapping[str, Any]) -> Text:
    """The verdict, and why where that is not plain from the effect."""
    from rich.text import Text

    said = entry["verdict"]
    why = ""
    if said == "fails":
        why = "not: " + "; ".join(what for what, met in entry.get("checks", {}).items() if not met)
    elif said == "crashed":
        why = entry.get("note", "")
    elif said == "invalid":
        why = "not shown: " + "; ".join(one["words"] for one in entry.get("validity", ()) if one["low"] <= one["margin"])
    elif said == "not applicable":
        why = "; ".join(
            f"{c['words']}: {c['value']:.3g}, needed {c['needed']:.3g}" for c in entry.get("conditions", ()) if not c["holds"]
        )
    elif said == "inconclusive":
        why = f"would have shown {entry['primary']['detectable']:.2g}"
    return Text(f"{said}{f' ({why})' if why else ''}", style=STYLES[said])


def freshness(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """The claims whose evidence is not fresh, with what has changed, and how many parts are fresh."""
    from rich.console import Group
    from rich.text import Text

    made = table_of("part", "evidence", "claim", "why")
    for row in rows:
        for claim, why in row["stale"].items():
            made.add_row(Text(f"{row['socket']}/{row['part']}"), Text(row["status"]), Text(claim), Text("; ".join(why)))
        if row["not run"] or row["status"] == "damaged":
            said = ", ".join(row["not run"])
            made.add_row(Text(f"{row['socket']}/{row['part']}"), Text(row["status"]), Text(said), Text("never run", style="dim"))
    fresh = sum(row["status"] == "fresh" for row in rows)
    end = Text(f"{fresh} of {len(rows)} parts with claims have fresh evidence.")
    if not made.row_count:
        return end
    return Group(made, end, Text("Measure what is not: tessera verify --all", style="dim"))


def sampled(found: Sequence[Again]) -> RenderableType:
    """Verdicts of evidence beside those of now."""
    from rich.text import Text

    made = table_of("part", "claim", "evidence", "now", "moved")
    made.add_column("s", justify="right")
    for result in found:
        moved = "" if result.moved is None else f"{result.moved:.2g} half widths"
        said = result.now.verdict + (f": {result.now.note}" if result.now.verdict == "crashed" else "")
        made.add_row(
            Text(f"{result.socket}/{result.part}"),
            Text(result.now.promise),
            Text(result.before.verdict, style=STYLES[result.before.verdict]),
            Text(said, style="" if result.agrees else "bold red"),
            Text(moved),
            Text(f"{result.now.seconds:.1f}"),
        )
    return made


def table_of(*columns: str) -> Table:
    """A table with a line under its head."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        made.add_column(column, overflow="fold")
    return made
