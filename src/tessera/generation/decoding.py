"""The loop over steps: every open row gets a token, until all rows have ended."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from tessera.generation.sampling import Chooser


class DecodingRun(Protocol):
    """Rows in the middle of their answers; `logits [R, V]` are of the next token."""

    logits: Tensor

    def step(self, tokens: Tensor) -> None:
        """Appends one token to every row: tokens [R]."""

    def keep(self, rows: Sequence[int]) -> list[int]:
        """May let go of rows other than these; returns the rows that remain, as they were numbered."""


@dataclass(slots=True)
class PartialAnswer:
    """One answer in the making: its tokens without the end, and the log-probability of all that was chosen."""

    limit: int
    tokens: list[int] = field(default_factory=list)
    log_probability: float = 0.0
    finished: bool = False

    @property
    def open(self) -> bool:
        """Whether it wants another token."""
        return not self.finished and len(self.tokens) < self.limit


def decode(run: DecodingRun, rows: Sequence[PartialAnswer], choose: Chooser, ends: frozenset[int]) -> Iterator[None]:
    """Goes on until no row is open; yields after every step. A row with limit 0 is only there to fill a grid."""
    order = list(range(len(rows)))
    while True:
        chosen, known = choose(run.logits)
        for number, token, log_probability in zip(order, chosen.tolist(), known.tolist(), strict=True):
            row = rows[number]
            if not row.open:
                continue
            row.log_probability += log_probability
            if token in ends:
                row.finished = True
            else:
                row.tokens.append(token)
        yield
        wanted = [place for place, number in enumerate(order) if rows[number].open]
        if not wanted:
            return
        if len(wanted) < len(order):
            kept = run.keep(wanted)
            if len(kept) < len(order):
                order = [order[place] for place in kept]
                chosen = chosen.index_select(0, torch.tensor(kept, device=chosen.device))
        run.step(chosen)
