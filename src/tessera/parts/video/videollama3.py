"""VideoLLaMA 3 drops what has not changed since the frame before.

Source: Zhang et al., "VideoLLaMA 3: Frontier Multimodal Foundation Models for Image and Video Understanding", 2025,
arXiv:2501.13106, the differential frame pruner (DiffFP). For every visual token of a frame the mean absolute difference of its
pixels to those of the frame before, times 255, is compared with a threshold; tokens below it do not reach the language model.
The first frame stays whole, and of every frame at least one token stays.

Deviations: this is the frame compressor alone, for any host that shows frames as images of one prompt; no frame timestamps,
no encoder with variable resolution. Tokens keep their positions, because models that were not trained with the pruner know no
others; the paper counts anew, `positions="reindex"`. Any number of prompts at once (the published code: one).

Shapes: F frames, n visual tokens of a frame, P pixel values under a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tessera.config import config
from tessera.hosts.clips import ClipPart
from tessera.registry import part


def changed(clip: Tensor, threshold: float, least: int = 1) -> Tensor:
    """Pixels [F, n, P] -> [F, n] bool: tokens whose pixels differ from the frame before by more than `threshold` (mean absolute
    difference times 255), the whole first frame, and the first `least` tokens of frames where fewer differ."""
    difference = (clip[1:] - clip[:-1]).abs().mean(-1) * 255
    stay = torch.cat([clip.new_ones(1, clip.shape[1], dtype=torch.bool), difference > threshold])
    still = stay.sum(1) < least
    stay[still, :least] = True
    return stay


@part("videollama3", socket="video", catalog=113)
class DiffFP(ClipPart):
    """Drops tokens of frames that look as they did one frame before."""

    @config
    class Config(ClipPart.Config):
        """threshold: mean absolute difference of the model's pixel values, times 255, above which a token stays; below 0 all do.
        least: tokens that stay of every frame."""

        threshold: float = 0.1
        least: int = 1

        def validate_least(self) -> None:
            if self.least < 0:
                raise ValueError(f"least is a number of tokens, not {self.least}.")

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Every token goes on."""
        return {"threshold": -1.0}

    @classmethod
    def example(cls, layers: int) -> dict[str, Any]:
        """About half of the second of two frames of noise."""
        return {"threshold": 255 * 2 / torch.pi**0.5}

    def shares(self, layers: int) -> Mapping[int, float]:
        """None with a threshold below zero."""
        return {} if self.config.threshold < 0 else super().shares(layers)

    def stays(self, clip: Tensor) -> Tensor:
        """See `changed`."""
        return changed(clip, self.config.threshold, self.config.least)
