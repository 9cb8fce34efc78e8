"""Gives memory back to the system that is free but still held by the process.

Batches differ in length, so what one frees rarely fits the next, and glibc keeps the pieces: after a thousand steps they are more
than the model, its optimiser and a batch together.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

RETURN_EVERY = 25
"""Steps of training between two returns, which take tens of milliseconds each."""


def return_memory() -> bool:
    """Gives free memory of the C library's heap back to the system. False where the library cannot (it is not glibc)."""
    trim = _trim()
    if trim is None:
        return False
    trim(0)
    return True


@functools.cache
def _trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):  # TypeError: Windows takes no None
        return None
    return found
