"""Idefics3 and SmolVLM: tiles of fixed size through SigLIP, squares of patches folded into channels; rows of images are filled up
with black ones, which the model leaves out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tessera.hosts.architecture import RasterFamily, family


@family("idefics3", title="Idefics3")
class Idefics3(RasterFamily):
    """See the module."""

    def stride(self, model: Any) -> int:
        return int(model.config.scale_factor)

    def grids(self, model: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        real = (inputs["pixel_values"] != 0).flatten(2).any(-1)
        return super().grids(model, inputs)[: int(real.sum())]


@family("smolvlm", title="SmolVLM")
class SmolVLM(Idefics3):
    """See the module."""
