"""How the next token is chosen: the likeliest, or a random one.

Source of top-p: Holtzman et al., "The Curious Case of Neural Text Degeneration", 2019, arXiv:1904.09751.
Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tessera.errors import UserError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn.

    temperature  0 takes the likeliest token (greedy); above 0 the logits are divided by it and a token is drawn
    top_p        only the likeliest tokens whose probabilities sum to this much take part, in (0, 1]
    top_k        only this many of the likeliest tokens take part; 0: all
    seed         of the draw; None takes torch's own random state

    Raises `UserError` for a value outside its range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature must be 0 (the likeliest token) or more, not {self.temperature}.")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}.")
        if self.top_k < 0:
            raise UserError(f"top_k must be 0 (all tokens) or more, not {self.top_k}.")

    def options(self) -> dict[str, Any]:
        """The same in the words of `generate`."""
        if self.temperature == 0:
            return {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        return {"do_sample": True, "temperature": self.temperature, "top_p": self.top_p, "top_k": self.top_k}


GREEDY = Sampling()


class Chooser:
    """Chooses tokens for one run; drawing goes on where the last step ended."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.sampling = sampling
        self.random: torch.Generator | None = None
        if sampling.temperature > 0 and sampling.seed is not None:
            self.random = torch.Generator(device).manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """`logits` [R, V] -> chosen tokens [R] int64, and their log-probabilities [R] at temperature 1, top-p and top-k aside."""
        if self.sampling.temperature == 0:
            chosen = logits.argmax(-1)
        else:
            shares = (likeliest(logits.float(), self.sampling.top_k) / self.sampling.temperature).softmax(-1)
            shares = nucleus(shares, self.sampling.top_p)
            chosen = torch.multinomial(shares, 1, generator=self.random)[:, 0]
        known = logits.float().log_softmax(-1).gather(1, chosen[:, None])
        return chosen, known[:, 0]


def likeliest(logits: Tensor, top_k: int) -> Tensor:
    """Logits [R, V] with all but the `top_k` highest (0: all, and ties stay) at minus infinity."""
    if not 0 < top_k < logits.shape[-1]:
        return logits
    return logits.masked_fill(logits < logits.topk(top_k, -1).values[:, -1:], -torch.inf)


def nucleus(shares: Tensor, top_p: float) -> Tensor:
    """Probabilities [R, V] with the unlikely tail set to zero (not normalised again); the likeliest always stays."""
    if top_p >= 1:
        return shares
    ordered, places = shares.sort(-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    return torch.zeros_like(shares).scatter(-1, places, ordered.masked_fill(before >= top_p, 0.0))
