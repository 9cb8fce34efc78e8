"""The position socket: other position ids in front of the rotary module, and rotations of re-indexed tokens.

Legend: B rows, S tokens of the prompt, K tokens left at a layer.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tessera.errors import TesseraError, UserError
from tessera.hosts.part import HostPart
from tessera.hosts.sequence import TokenStage

if TYPE_CHECKING:
    from tessera.hosts.boundary import ForwardPass
    from tessera.hosts.plug import Host


@dataclass(slots=True, eq=False)
class Call:
    """One call of the rotary module in this forward: its arguments, the positions it was given, what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    positions: Tensor
    output: Any = None

    def arguments(self, positions: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same arguments with other positions."""
        if "position_ids" in self.kwargs:
            return self.args, {**self.kwargs, "position_ids": positions}
        return (self.args[0], positions, *self.args[2:]), self.kwargs


class PositionSocket:
    """Hooks of the rotary module, installed only where a part wants them."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.editing = [p for p in host.parts if type(p).edit_positions is not HostPart.edit_positions]

    def install(self, undo: ExitStack) -> None:
        """Installs the hooks until `undo` is closed."""
        if not self.editing and all(part.positions == "keep" for part in self.host.parts):
            return
        rotary = self.host.architecture.rotary
        if rotary is None:
            raise UserError(f"{self.host.title} has no rotary positions, so they cannot be changed.")
        undo.callback(rotary.register_forward_pre_hook(self._before, with_kwargs=True).remove)
        undo.callback(rotary.register_forward_hook(self._after).remove)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        current = self.host.current
        if current is None:
            return None
        given = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        positions = given
        if self.editing:
            rows = current.sequence.visual.shape[0]
            positions = whole = given.expand(*given.shape[:-2], rows, given.shape[-1])
            for part in self.editing:
                positions = part.edit_positions(self.host, current.sequence, positions)
            if positions is whole:
                positions = given
        call = Call(args, kwargs, positions)
        current.rotary_calls.append(call)
        return None if positions is given else call.arguments(positions)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        current = self.host.current
        if current is not None and current.rotary_calls:
            current.rotary_calls[-1].output = output

    def rotations(self, current: ForwardPass, stage: TokenStage, given: Any) -> Any:
        """What the rotary module makes of a stage's re-indexed positions, in the call whose output was `given`."""
        calls = [call for call in current.rotary_calls if call.output is given]
        if not calls:
            raise TesseraError("a layer's position embeddings do not come from the rotary module: they cannot be re-indexed.")
        call = calls[0]
        args, kwargs = call.arguments(reindexed(call.positions, current, stage))
        rotary: Any = self.host.architecture.rotary
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
