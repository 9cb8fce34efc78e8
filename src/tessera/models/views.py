"""What a `pixels` part of composed models is: it decides what every encoder is shown of an image, and puts the features together.

It stands around the encoders, which are handed to it call by call, and knows nothing of their insides: any encoder works, frozen
or not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor, nn

Layers: TypeAlias = tuple[Tensor, ...]
"""Features [B, N, D] of one or several layers of an encoder, the last one last."""


class EncoderViews(nn.Module, ABC):
    """Pixels and the encoder behind it -> features of several views as one set, as many tokens as the encoder gives."""

    @abstractmethod
    def image_size(self, size: int) -> int:
        """Side of the images that are wanted for an encoder that takes `size` x `size` pixels."""

    @abstractmethod
    def width(self, width: int) -> int:
        """Channels that come out for an encoder of `width` channels."""

    @abstractmethod
    def forward(self, encode: Callable[[Tensor], Layers], pixels: Tensor, size: int, grid: tuple[int, int]) -> Layers:
        """Pixels [M, 3, S, S], S = `image_size(size)` -> features [M, N, `width(D)`] on `grid`, for every layer of the encoder.

        encode: views [V, 3, size, size] -> the encoder's layers, each [V, N, D] on `grid` in reading order.
        """
