"""How the next token is chosen: the likeliest, or a random one, drawn from what the warpers of transformers leave.

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
        self._warp = warpers(sampling) if sampling.temperature > 0 else None
        if sampling.temperature > 0 and sampling.seed is not None:
            self.random = torch.Generator(device).manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """`logits` [R, V] -> chosen tokens [R] int64, and their log-probabilities [R] at temperature 1, top-p and top-k aside."""
        logits = logits.float()
        if self._warp is None:
            chosen = logits.argmax(-1)
        else:
            chosen = torch.multinomial(self._warp(None, logits).softmax(-1), 1, generator=self.random)[:, 0]
        known = logits.log_softmax(-1).gather(1, chosen[:, None])
        return chosen, known[:, 0]


def warpers(sampling: Sampling) -> Any:
    """What `generate` of transformers does to logits [R, V] before it draws, in its order: divided by the temperature, which
    must be above 0, and what top-k and top-p leave out at minus infinity."""
    from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    found = LogitsProcessorList([TemperatureLogitsWarper(float(sampling.temperature))])
    if sampling.top_k > 0:
        found.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        found.append(TopPLogitsWarper(sampling.top_p))
    return found
