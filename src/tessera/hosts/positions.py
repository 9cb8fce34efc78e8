"""The position socket: other position ids in front of the rotary module, whose calls are recorded for re-indexed tokens."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn

from tessera.errors import UserError
from tessera.hosts.context import PlugContext
from tessera.hosts.forward import RotaryCall
from tessera.hosts.part import HostPart


class PositionSocket:
    """Hooks of the rotary module, installed only where a part wants them."""

    def __init__(self, context: PlugContext) -> None:
        self.context = context
        self.editing = [p for p in context.parts if type(p).edit_positions is not HostPart.edit_positions]

    def install(self, undo: ExitStack) -> None:
        """Installs the hooks until `undo` is closed."""
        if not self.editing and all(part.positions == "keep" for part in self.context.parts):
            return
        rotary = self.context.architecture.rotary
        if rotary is None:
            raise UserError(f"{self.context.host.title} has no rotary positions, so they cannot be changed.")
        undo.callback(rotary.register_forward_pre_hook(self._before, with_kwargs=True).remove)
        undo.callback(rotary.register_forward_hook(self._after).remove)

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        current = self.context.current
        if current is None:
            return None
        given = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
        positions = given
        if self.editing:
            rows = current.sequence.visual.shape[0]
            positions = whole = given.expand(*given.shape[:-2], rows, given.shape[-1])
            for part in self.editing:
                positions = part.edit_positions(self.context.host, current.sequence, positions)
            if positions is whole:
                positions = given
        call = RotaryCall(args, kwargs, positions)
        current.rotary_calls.append(call)
        return None if positions is given else call.arguments(positions)

    def _after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        current = self.context.current
        if current is not None and current.rotary_calls:
            current.rotary_calls[-1].output = output
