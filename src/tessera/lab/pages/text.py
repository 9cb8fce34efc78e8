"""Words and numbers as they are written for people, on pages and in the terminal. Plain text: nothing here makes HTML."""

from __future__ import annotations

import math
import re

_DIGITS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


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


def signed(value: float) -> str:
    """An effect: with its sign, and at most three digits after the point, `+0.041`."""
    if not math.isfinite(value) or abs(value) >= 1000 or 0 < abs(value) < 1e-3:
        return number(value) if not value > 0 or math.isnan(value) else f"+{number(value)}"
    digits = 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    written = f"{value:+.{digits}f}"
    return f"{0:.{digits}f}" if not float(written) else written.replace("-", "−")


def interval(low: float, high: float) -> str:
    """`+0.012 to +0.070`."""
    return f"{signed(low)} to {signed(high)}"


def seconds(value: float) -> str:
    """ "0.3 s", "41 s", "3:34 min", "1:12 h"."""
    if value < 60:
        return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes >= 60:
        hours, minutes = divmod(round(value / 60), 60)
        return f"{hours}:{minutes:02} h"
    return f"{minutes}:{rest:02} min"


def words(name: str) -> str:
    """A name from code as words: `token_reduction` -> token reduction."""
    return name.replace("_", " ")


def counted(count: int, noun: str) -> str:
    """`1 image`, `1,200 images`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def capital(text: str) -> str:
    """With a capital at its beginning, unless that is a name from code."""
    return text[:1].upper() + text[1:] if text[1:2].islower() or text[1:2] == " " else text


def sentence(text: str) -> str:
    """The first sentence of a docstring, on one line, with its full stop."""
    first = " ".join(re.split(r"\n\s*\n", text.strip())[0].split())
    return re.split(r"(?<!\be\.g\.)(?<!\bi\.e\.)(?<!\bal\.)(?<=\.)\s", first, maxsplit=1)[0]


def citation(text: str) -> tuple[str, str]:
    """A "Source:" paragraph as (what is cited, what is said after it)."""
    ends = [m.end() for m in re.finditer(r"(?:arXiv:\s?\d{4}\.\d{4,5}|https?://\S+?)(?=[.;]?(?:\s|$))", text)]
    if not ends:
        year = re.search(r"\b(?:19|20)\d\d\b[^.]*(?=\.(?:\s|$))", text)
        ends = [year.end()] if year else [len(text)]
    cut = ends[-1]
    return text[:cut].strip(), text[cut:].lstrip(".;, \n")


def arxiv(text: str) -> list[str]:
    """The arXiv numbers in a text, each once."""
    return list(dict.fromkeys(re.findall(r"arXiv:\s?(\d{4}\.\d{4,5})", text)))


def _scientific(value: float) -> str:
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_DIGITS)}"
