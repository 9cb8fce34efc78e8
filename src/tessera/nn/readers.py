"""Which layers read the output of a norm: methods that move scales from activations into weights need to know.

The answer is seen in one forward, so that it needs no names of layers and holds for any architecture.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

Readers: TypeAlias = Mapping[nn.LayerNorm, list[nn.Linear]]
"""Norm -> the linear layers that read its output, at least one."""


def norm_readers(model: nn.Module, norms: Sequence[nn.LayerNorm], layers: Collection[Any], inputs: Mapping[str, Any]) -> Readers:
    """The norms whose output is read by linear layers of `layers` and by nothing else, in a forward of `inputs`.

    Left out is a norm whose output another operation reads or that the model returns, and one with a reader that also reads
    something else: its scale cannot be moved without changing what the model computes.
    """
    watch = _Watch({id(layer.weight): layer for layer in layers if isinstance(layer, nn.Linear)})
    hooks = [norm.register_forward_hook(watch.gave) for norm in norms]
    try:
        with torch.no_grad(), watch:
            returned = model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for value in _tensors(returned):
        watch.spoil(value)
    found: dict[nn.LayerNorm, list[nn.Linear]] = {}
    for sources in watch.read.values():
        if len(sources) > 1:
            watch.spoiled.update(source for source in sources if source is not None)
    for layer, sources in watch.read.items():
        (source,) = sources if len(sources) == 1 else (None,)
        if source is not None and source not in watch.spoiled:
            found.setdefault(source, []).append(layer)
    return found


class _Watch(TorchFunctionMode):
    """Notes which norm's output each linear layer reads, and which outputs are read by anything else."""

    def __init__(self, by_weight: dict[int, nn.Linear]) -> None:
        super().__init__()
        self.by_weight = by_weight
        self.given: dict[int, tuple[Tensor, nn.LayerNorm]] = {}  # the tensors are held, so that their ids stay theirs
        self.read: dict[nn.Linear, set[nn.LayerNorm | None]] = {}
        self.spoiled: set[nn.LayerNorm] = set()

    def gave(self, norm: Any, args: Any, output: Tensor) -> None:
        """A forward hook of norms."""
        self.given[id(output)] = (output, norm)

    def source(self, value: Any) -> nn.LayerNorm | None:
        """The norm that gave a tensor."""
        known = self.given.get(id(value))
        return None if known is None else known[1]

    def spoil(self, value: Any) -> None:
        """Something other than a linear layer reads the value."""
        norm = self.source(value)
        if norm is not None:
            self.spoiled.add(norm)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is F.linear:
            x, weight = args[0], args[1] if len(args) > 1 else kwargs["weight"]
            layer = self.by_weight.get(id(weight))
            if layer is not None:
                self.read.setdefault(layer, set()).add(self.source(x))
                return result
        made = list(_tensors(result))
        for value in _tensors((args, kwargs)):
            # Asking for a shape reads nothing, and what is handed back as it is may still be read rightly.
            if made and not any(value is m for m in made):
                self.spoil(value)
        return result


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for entry in value.values():
            yield from _tensors(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _tensors(entry)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _tensors(getattr(value, name))
