"""The plain values of the host layer: what is captured, how tokens are numbered, what a part decides.

Legend: B rows, K tokens at a layer, E width of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

Tap: TypeAlias = Literal["last", "received", "class", "class logits", "full"]
"""What is captured of one attention layer, averaged over heads: probabilities of the last instruction token [B, K], mean over
queries of what each key receives [B, K], the class token's row [B, K], that row in front of the softmax [B, K], everything
[B, K, K]."""

Positions: TypeAlias = Literal["keep", "reindex"]
"""Positions of the tokens that stay after a drop: their own, or counted anew without gaps."""


@dataclass(slots=True)
class Selection:
    """What a part decides at a layer boundary, in prefill.

    keep    [B, K] bool, tokens that go on (False only at visual tokens); None: all
    hidden  [B, K, E], the tokens' new states before any is dropped (merged ones); None: as they were
    """

    keep: Tensor | None = None
    hidden: Tensor | None = None
