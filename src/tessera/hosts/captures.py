"""The taps that parts want, installed on the language model and the vision tower.

Legend: B rows, H heads, G key-value heads, Q queries, K keys, D width of a head.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn

from tessera.errors import UserError
from tessera.hosts.context import PlugContext
from tessera.hosts.part import HostPart, name_of
from tessera.hosts.reader import PartTaps
from tessera.hosts.taps import Listener, listen, probabilities
from tessera.hosts.values import Tap


def install_taps(context: PlugContext, undo: ExitStack) -> list[PartTaps]:
    """Taps what the parts want until `undo` is closed; what each wants, in their order.

    Raises `UserError` for layers and blocks that do not exist, and for a tower without attention.
    """
    architecture = context.architecture
    found = [_wanted(context, part) for part in context.parts]
    for layer, tap in sorted({(layer, tap) for own in found for layer, tap in own.language.items()}):
        listen(architecture.attention(architecture.layers[layer]), _language_listener(context, layer, tap), undo)
    for block, tap in sorted({key for own in found for key in own.tower}):
        assert architecture.tower_blocks is not None
        listen(architecture.attention(architecture.tower_blocks[block]), _tower_listener(context, block, tap), undo)
    return found


def _wanted(context: PlugContext, part: HostPart) -> PartTaps:
    architecture, name = context.architecture, name_of(part)
    layers, blocks = len(architecture.layers), architecture.tower_blocks
    language = {_place(n, layers, name, "decoder layer"): tap for n, tap in part.language_taps(context.host).items()}
    wanted = part.tower_taps(context.host)
    if wanted and blocks is None:
        raise UserError(f"{name} needs attention of the vision tower; that of {context.host.title} has no attention blocks.")
    count = 0 if blocks is None else len(blocks)
    return PartTaps(name, language, [(_place(n, count, name, "tower block"), tap) for n, tap in wanted.items()])


def _language_listener(context: PlugContext, layer: int, tap: Tap) -> Listener:
    def hook(module: nn.Module, query: Tensor, key: Tensor, mask: Any, scaling: float | None) -> None:
        state = context.states.here()
        current = state.current
        if current is None or not current.prefill or state.probe is not None or not current.sequence.has_visual:
            return
        stage = current.sequence.stages[layer]
        key = key[:, :, : query.shape[2]]  # a static cache hands over all its room
        found = probabilities(module, query, key, mask, scaling, tap, stage.query, stage.real)
        current.captured[layer, tap] = (stage, found)

    return hook


def _tower_listener(context: PlugContext, block: int, tap: Tap) -> Listener:
    def hook(module: nn.Module, query: Tensor, key: Tensor, mask: Any, scaling: float | None) -> None:
        context.states.own().prompt.capture((block, tap), probabilities(module, query, key, mask, scaling, tap))

    return hook


def _place(number: int, count: int, name: str, what: str) -> int:
    if not -count <= number < count:
        raise UserError(f"{name}: there is no {what} {number}; there are {count}.")
    return number % count
