"""What a stage does to a model: which parameters train and how fast, which parts are in eval mode."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class InSockets(Protocol):
    """A model that says which of its modules a stage can name."""

    def sockets(self) -> dict[str, nn.Module]:
        """Name -> module."""
        ...


def sockets_of(model: nn.Module) -> dict[str, nn.Module]:
    """The model's sockets, or the whole module as one socket called "model"."""
    return dict(model.sockets()) if isinstance(model, InSockets) else {"model": model}


def outer_first(sockets: Mapping[str, nn.Module]) -> list[str]:
    """Names of the sockets, one that contains another before it: the innermost has the last word."""
    return sorted(sockets, key=lambda name: -sum(1 for _ in sockets[name].modules()))


def factors(sockets: Mapping[str, nn.Module], plan: Mapping[str, float], trainable: set[int]) -> dict[int, float]:
    """Learning-rate multiplier (> 0) by id of the parameters that train under `plan` (socket -> multiplier).

    A parameter that two sockets share trains if one of them does; one that is not in `trainable` never does.
    """
    found: dict[int, float] = {}
    claimed: dict[int, nn.Module] = {}
    for name in outer_first(sockets):
        for parameter in sockets[name].parameters():
            inner = id(parameter) in claimed and sockets[name] in claimed[id(parameter)].modules()
            if id(parameter) in trainable and (inner or not found.get(id(parameter))):
                found[id(parameter)] = plan[name]
                claimed[id(parameter)] = sockets[name]
    return {key: factor for key, factor in found.items() if factor > 0}


def freeze(model: nn.Module, sockets: Mapping[str, nn.Module], plan: Mapping[str, float], trained: Iterable[int]) -> None:
    """Lets exactly the parameters with an id in `trained` have gradients; frozen sockets go to eval mode."""
    wanted = set(trained)
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    model.train()
    for name in outer_first(sockets):
        sockets[name].train(plan[name] > 0)


def cast(model: nn.Module, trained: set[int], everything: bool) -> None:
    """Makes the weights that train float32, or `everything`; autocast can bridge the types of frozen ones."""
    for parameter in model.parameters():
        if parameter.is_floating_point() and (everything or id(parameter) in trained):
            parameter.data = parameter.data.to(torch.float32)
    if everything:
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.data = buffer.data.to(torch.float32)
