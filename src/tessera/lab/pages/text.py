"""Words and numbers on a page: everything that comes from a file or a person is escaped here."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence

_LINK = re.compile(r"arXiv:\s?(?P<arxiv>\d{4}\.\d{4,5})|(?P<url>https?://[^\s<>\"'`]+[^\s<>\"'`.,;:)])")
_EMPHASIS = re.compile(r"(?<![\w*])\*(?=[^\s*])([^*]*[^\s*])\*(?![\w*])")
_DIGITS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def escape(text: object) -> str:
    """HTML-safe, in text and in attributes."""
    return html.escape(str(text), quote=True)


def link(url: str, words: str, css: str = "") -> str:
    """A link to another site, or the bare words where the address is none of the web."""
    if not url.startswith(("https://", "http://")):
        return escape(words)
    style = f' class="{css}"' if css else ""
    return f'<a{style} href="{escape(url)}" rel="noreferrer">{escape(words)}</a>'


def inline(text: str) -> str:
    """Escaped text in which `code`, *emphasis*, arXiv numbers and addresses are what they stand for."""
    found = []
    for index, piece in enumerate(text.split("`")):
        found.append(f"<code>{escape(piece)}</code>" if index % 2 else _linked(piece))
    return "".join(found)


def prose(text: str) -> str:
    """Paragraphs, lists (lines that begin with "- ") and indented code of a docstring as HTML."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        lines = paragraph.splitlines()
        if not paragraph.strip():
            continue
        if all(line.startswith("    ") for line in lines):
            found.append(f"<pre>{escape(paragraph)}</pre>")
        elif lines[0].lstrip().startswith("- "):
            items = re.split(r"(?:^|\n)\s*- ", paragraph)[1:]
            found.append("<ul>" + "".join(f"<li>{inline(' '.join(i.split()))}</li>" for i in items) + "</ul>")
        else:
            found.append(f"<p>{inline(' '.join(paragraph.split()))}</p>")
    return "".join(found)


def citation(text: str) -> tuple[str, str]:
    """A "Source:" paragraph as (what is cited, what is said after it)."""
    ends = [m.end() for m in re.finditer(r"(?:arXiv:\s?\d{4}\.\d{4,5}|https?://\S+?)(?=[.;]?(?:\s|$))", text)]
    if not ends:
        year = re.search(r"\b(?:19|20)\d\d\b[^.]*(?=\.(?:\s|$))", text)
        ends = [year.end()] if year else [len(text)]
    cut = ends[-1]
    return text[:cut].strip(), text[cut:].lstrip(".;, \n")


def capital(text: str) -> str:
    """With a capital at its beginning, unless that is a name from code."""
    return text[:1].upper() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def arxiv(text: str) -> list[str]:
    """The arXiv numbers in a text, each once."""
    return list(dict.fromkeys(re.findall(r"arXiv:\s?(\d{4}\.\d{4,5})", text)))


def number(value: float) -> str:
    """About four digits: 0.9213, 1,204, 1.2 × 10⁻⁷."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    size = abs(value)
    if size >= 1000:
        written = f"{value:,.0f}" if size < 1e12 else _scientific(value)
    else:
        written = f"{value:.4g}" if size >= 1e-3 or size == 0 else _scientific(value)
    return written.replace("-", "−")


def seconds(value: float) -> str:
    """ "0.3 s", "41 s", "3:34 min"."""
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    return f"{minutes}:{rest:02} min"


def words(name: str) -> str:
    """A name from code as words: `token_reduction` -> token reduction."""
    return name.replace("_", " ")


def facts(rows: Mapping[str, str]) -> str:
    """A table of two columns; keys are escaped here, values are HTML; empty ones are left out."""
    body = "".join(f"<tr><td>{escape(k)}</td><td>{v}</td></tr>" for k, v in rows.items() if v)
    return f'<div class="scroll"><table class="facts">{body}</table></div>' if body else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; cells are HTML."""
    heads = "".join(f"<th>{escape(h)}</th>" for h in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{heads}</tr>{body}</table></div>'


def _linked(text: str) -> str:
    found, end = [], 0
    for m in _LINK.finditer(text):
        url = f"https://arxiv.org/abs/{m['arxiv']}" if m["arxiv"] else m["url"]
        found += [_emphasised(text[end : m.start()]), link(url, m[0])]
        end = m.end()
    return "".join([*found, _emphasised(text[end:])])


def _emphasised(text: str) -> str:
    return _EMPHASIS.sub(r"<em>\1</em>", escape(text))


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_DIGITS)}"
