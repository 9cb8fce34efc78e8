"""Weight initialisation that leaves loaded weights alone.

transformers marks every tensor it has read from a checkpoint; the functions of `transformers.initialization`
skip those, so a part may initialise its whole subtree at any time.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

from torch import nn
from transformers import initialization as init


@runtime_checkable
class OwnWeights(Protocol):
    """A module with rules of its own for its whole subtree."""

    def init_weights(self) -> None:
        """Initialises what was not loaded."""
        ...


def linear(module: nn.Linear, std: float = 0.02) -> None:
    """Truncated normal weights, zero bias."""
    init.trunc_normal_(module.weight, std=std)
    if module.bias is not None:
        init.zeros_(module.bias)


def convolution(module: nn.Conv2d) -> None:
    """Kaiming-uniform weights (PyTorch's default for convolutions), zero bias."""
    init.kaiming_uniform_(module.weight, a=math.sqrt(5))
    if module.bias is not None:
        init.zeros_(module.bias)


def norm(module: nn.LayerNorm | nn.GroupNorm) -> None:
    """Ones and zeros."""
    init.ones_(module.weight)
    if module.bias is not None:
        init.zeros_(module.bias)


def tree(root: nn.Module, std: float = 0.02) -> None:
    """The rules above for every linear, convolution, norm and embedding layer under `root`."""
    for module in root.modules():
        if isinstance(module, nn.Linear):
            linear(module, std)
        elif isinstance(module, nn.Conv2d):
            convolution(module)
        elif isinstance(module, (nn.LayerNorm, nn.GroupNorm)):
            norm(module)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=std)
