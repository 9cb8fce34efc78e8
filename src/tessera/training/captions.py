"""Images with captions, for contrastive training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tessera.data.dense import to_pixels
from tessera.world import World
from tessera.world.dataset import Sample


class CaptionData:
    """Batches `{"pixel_values" [B, 3, S, S], "input_ids" [B, T], "attention_mask" [B, T]}` of images and short captions."""

    def __init__(self, worlds: Sequence[World], processor: Any) -> None:
        self.worlds, self.processor = list(worlds), processor

    def collate(self, indices: Sequence[int]) -> dict[str, Any]:
        """The samples of `indices` as one batch."""
        samples = [self.worlds[i % len(self.worlds)][i] for i in indices]
        text = self.processor(text=[caption(s) for s in samples], return_tensors="pt")
        pixels = to_pixels([np.asarray(s.images()[0]) for s in samples])
        return {
            "pixel_values": pixels,
            "input_ids": text["input_ids"],
            "attention_mask": text["attention_mask"],
            "return_loss": torch.tensor(True),
        }


def caption(sample: Sample) -> str:
    """What a dual encoder is to match the sample's first frame with."""
    return sample.captions()["short"]
