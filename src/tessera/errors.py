"""Errors with sentences for people: `UserError` for mistakes in the input, `TesseraError` for faults of Tessera.

A `UserError` is the user's to mend (exit code 2); a `TesseraError` is ours (exit code 1). Both carry one or two
sentences: what was wrong, where, and what would be right.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class TesseraError(Exception):
    """Something failed on Tessera's side; the message says what and where."""

    exit_code = 1


class UserError(TesseraError, ValueError):
    """The input was wrong; the message says what would be right."""

    exit_code = 2


def nearest(word: str, valid: Iterable[str], limit: int = 3) -> list[str]:
    """The valid words nearest to `word`, best first; none if nothing is close."""
    return difflib.get_close_matches(word, sorted(valid), n=limit, cutoff=0.5)


def unknown(what: str, word: str, valid: Iterable[str]) -> UserError:
    """A `UserError` for a name that does not exist: names the nearest ones, or all of them when they are few."""
    names = sorted(valid)
    close = nearest(word, names)
    if close:
        hint = f"Did you mean {' or '.join(repr(c) for c in close)}?"
    elif len(names) <= 20:
        hint = f"Valid: {', '.join(names) or '(none)'}."
    else:
        hint = f"There are {len(names)} valid names, among them {', '.join(names[:8])} ..."
    return UserError(f"unknown {what} {word!r}. {hint}")
