"""Rotations of the tokens that are left, where their positions are counted anew.

Legend: B rows, S tokens of the prompt, K tokens left at a layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tessera.errors import TesseraError, UserError
from tessera.hosts.forward import ForwardPass
from tessera.hosts.sequence import TokenStage


def rotations(rotary: Any, current: ForwardPass, stage: TokenStage, given: Any) -> Any:
    """What the module `rotary` makes of a stage's re-indexed positions, in the call whose output was `given`."""
    calls = [call for call in current.rotary_calls if call.output is given]
    if not calls:
        raise TesseraError("a layer's position embeddings do not come from the rotary module: they cannot be re-indexed.")
    call = calls[0]
    args, kwargs = call.arguments(reindexed(call.positions, current, stage))
    return rotary.forward(*args, **kwargs)


def reindexed(positions: Tensor, current: ForwardPass, stage: TokenStage) -> Tensor:
    """Positions [B or 1, S] of the full prompt -> [B, K] of the tokens of `stage`, counted without gaps; of later tokens:
    moved to the front by as many as were dropped."""
    if positions.dim() != 2:
        raise UserError("M-RoPE positions have no order in which they could be counted anew: use positions='keep'.")
    assert stage.shift is not None
    positions = positions.expand(stage.index.shape[0], -1)
    if not current.prefill:
        return positions - stage.shift[:, None]
    far = torch.iinfo(torch.int64).max if not positions.is_floating_point() else torch.inf
    first = positions.masked_fill(~current.sequence.real, far).amin(1, keepdim=True)
    return first + (stage.real.long().cumsum(1) - 1).clamp(min=0)
