"""Edits of the source, harmful ones that freshness must notice and harmless ones that it must not."""

from __future__ import annotations

from typing import NamedTuple


class Edit(NamedTuple):
    """`old`, which occurs exactly once in `file` (under `src/tessera`), becomes `new`."""

    name: str
    file: str
    old: str
    new: str
