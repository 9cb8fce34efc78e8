"""widen.py OLD NEW: the shipped nano (49 tokens, heads of 56) as the start of one with 196 tokens and heads of 64.

The language model computes the same function: its heads are padded, their norms rescaled for the wider mean and the other scale
of attention, and the base of the rotary embedding is raised to 10000^(64/56), so that the frequencies of the old channels are the
old ones. New channels of values and queries start small and random, those of keys and outputs at zero. The connector reads one
patch where it read a square of four: its first layer gets the sum of the four blocks of its weights. Writes float32 to folder
NEW.
"""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from tessera.models import reference
from tessera.recipes import nano
from tessera.recipes.recipe import Recipe
from tessera.training.run import build

HEADS, OLD, NEW = 4, 56, 64


def padded(weight: Tensor) -> Tensor:
    """Rows [HEADS * OLD, D] -> [HEADS * NEW, D], zeros behind each half of a head, as rotary pairs stand half a head apart."""
    halves = weight.reshape(HEADS, 2, OLD // 2, -1)
    wide = halves.new_zeros(HEADS, 2, NEW // 2, halves.shape[-1])
    wide[:, :, : OLD // 2] = halves
    return wide.reshape(HEADS * NEW, -1)


def stirred(weight: Tensor, size: float) -> Tensor:
    """The new rows of `padded` weights, random."""
    room = weight.reshape(HEADS, 2, NEW // 2, -1)
    room[:, :, OLD // 2 :] = torch.randn_like(room[:, :, OLD // 2 :]) * size
    return room.reshape(HEADS * NEW, -1)


def norm(weight: Tensor) -> Tensor:
    """The gain [OLD] of queries or keys -> [NEW]."""
    wide = weight.new_ones(2, NEW // 2)
    wide[:, : OLD // 2] = weight.reshape(2, OLD // 2) * math.sqrt(OLD / NEW) * (NEW / OLD) ** 0.25
    return wide.reshape(NEW)


def main(old: str, new: str) -> None:
    """Widens the model in `old` into `new`."""
    torch.manual_seed(0)
    wide, processor = build(Recipe(name="wide", about="A start.", model=nano.shipped()))
    found = {}
    for name, value in reference.load(old)[0].state_dict().items():
        kind = name.removesuffix(".weight").rpartition(".")[2]
        if kind in ("q_proj", "k_proj", "v_proj"):
            value = padded(value)
            if kind != "k_proj":
                value = stirred(value, 0.02 if kind == "v_proj" else 0.002)
        elif kind == "o_proj":
            value = padded(value.T).T.contiguous()
        elif kind in ("q_norm", "k_norm"):
            value = norm(value)
        elif name.endswith("connector.up.weight"):
            value = value.reshape(value.shape[0], 4, -1).sum(1)
        elif ".connector.norm." in name:
            value = value.reshape(4, -1).mean(0)
        found[name] = value
    wide.load_state_dict(found)
    reference.save(wide, processor, new, dtype=torch.float32)


if __name__ == "__main__":
    main(*sys.argv[1:])
