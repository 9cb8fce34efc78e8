"""Makes `src/tessera/lab/catalog.json`, the published systems that Tessera knows, from a research catalogue.

    scripts/build_catalog.py CATALOG.jsonl [OUT]

Each line of the catalogue is a JSON object with n, name, title, kind, system, core, mechanism and code. What is kept is what a
page needs; what the research doubts ("unsure") is left out rather than stated.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parent.parent / "src" / "tessera" / "lab" / "catalog.json"
SHORT, LONG = 24, 280
"""Characters of an `about` sentence; a longer one is cut at a semicolon or colon, or left out."""

ABBREVIATIONS = ("e.g.", "i.e.", "incl.", "vs.", "cf.", "approx.", "al.", "Fig.", "Sec.", "No.")
INSTRUCTIONS = re.compile(
    r"(?:(?:Add|Alternate|Ask|Attach|Between|Build|Compress|Compute|Cut|Decide|Distil|Drop|During|Embed|Expose|Feed|Fine-tune|Fit|For|"
    r"Freeze|Generate|Given|Insert|Keep|Learn|Let|Make|Map|Measure|Mix|Multiply|Optimise|Predict|Pretrain|Process|Prune|Pure|Quantise|"
    r"Read|Replace|Run|Sample|Select|Split|Stage|Step|Take|Teach|Train|Turn|Use|Write)\b|\()"
)
"""First words that make a sentence an instruction, or half of an enumeration, and no description."""

PAPER = re.compile(r"arxiv\.org|aclanthology\.org|openreview\.net|doi\.org|openaccess\.thecvf\.com|proceedings\.")
URL = re.compile(r"https?://[^\s;,()]+")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("catalog", type=Path, help="the research catalogue, one JSON object per line")
    parser.add_argument("out", type=Path, nargs="?", default=OUT, help="the file to write")
    arguments = parser.parse_args()
    lines = arguments.catalog.read_text(encoding="utf-8").splitlines()
    systems = sorted((entry(json.loads(line)) for line in lines if line.strip()), key=lambda e: e["n"])
    if [e["n"] for e in systems] != list(range(1, len(systems) + 1)):
        print(f"{arguments.catalog}: the numbers are not 1 to {len(systems)}, each once.", file=sys.stderr)
        return 1
    rows = ",\n".join("  " + json.dumps(e, ensure_ascii=False) for e in systems)
    arguments.out.write_text(f'{{"format": 1, "systems": [\n{rows}\n]}}\n', encoding="utf-8")
    with_about = sum(bool(e["about"]) for e in systems)
    with_links = sum(bool(e["links"]) for e in systems)
    print(f"{arguments.out}: {len(systems)} entries, {with_about} with a sentence, {with_links} with a link.")
    return 0


def entry(found: dict[str, Any]) -> dict[str, Any]:
    """What is kept of one entry."""
    return {
        "n": found["n"],
        "name": found["name"],
        "title": plain(found["title"]),
        "kind": found["kind"],
        "core": found["core"],
        "system": found["system"],
        "about": about(found["mechanism"]),
        "links": links(found["code"]),
    }


def plain(title: str) -> str:
    """A title without TeX: `M$^3$ViT` -> `M3ViT`."""
    return re.sub(r"\$\^?\{?(\w+)\}?\$", r"\1", title)


def about(mechanism: str) -> str:
    """The first sentence, if it describes; empty if it doubts, instructs, or cannot be shortened without losing its sense."""
    found = first_sentence(mechanism)
    if INSTRUCTIONS.match(found) or "implement" in found:
        return ""
    while len(found) > LONG:
        cut = max(found.rfind(mark, 0, LONG) for mark in ("; ", ": "))
        if cut < SHORT:
            return ""
        found = found[:cut].rstrip(" ,;:") + "."
    whole = found.count("(") == found.count(")") and found.count("'") % 2 == 0 and not found.endswith(ABBREVIATIONS)
    return found if len(found) >= SHORT and whole and "unsure" not in found and "known" not in found else ""


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence; a colon that opens an enumeration ends one as well."""
    for stop in re.finditer(r"[.!?](?=\s+[A-Z(\[]|$)", text):
        found = text[: stop.end()]
        if not found.endswith(ABBREVIATIONS):
            return re.sub(r":\s*\(?1\)?.*$", ".", found)
    return ""


def links(code: str) -> list[dict[str, str]]:
    """The addresses of an entry with what they are: paper, code, project page; an address that is doubted is left out."""
    found = []
    for match in URL.finditer(code):
        url = match[0].rstrip(".")
        note = code[match.end() : code.find(";", match.end()) if ";" in code[match.end() :] else len(code)]
        if "unsure" in note or any(link["url"] == url for link in found):
            continue
        found.append({"label": label(url, note), "url": url})
    return found


def label(url: str, note: str) -> str:
    """What an address is, as far as it and the note beside it say."""
    if PAPER.search(url):
        return "paper"
    if "github.com/" not in url or "paper list" in note:
        return "project page" if "paper list" not in note else "list of papers"
    if re.search(r"re-implementation|unofficial", note):
        return "code by others"
    return "repository" if re.search(r"README only|no code|no files", note) else "code"


if __name__ == "__main__":
    sys.exit(main())
