"""Mistral 3 with Pixtral's tower: images at their own resolution, all in one sequence, squares of patches merged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tessera.hosts.architecture import RasterFamily, family, patch_size
from tessera.hosts.families.llava import feature_block


@family("mistral3", title="Mistral 3")
class Mistral3(RasterFamily):
    """See the module."""

    def feature_block(self, model: Any) -> int:
        return feature_block(model.config)

    def stride(self, model: Any) -> int:
        return int(model.config.spatial_merge_size)

    def grids(self, model: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        side = patch_size(model)
        return [(int(height) // side, int(width) // side) for height, width in inputs["image_sizes"]]
