"""InternVL: tiles of fixed size through a ViT with a class token, squares of patches folded into channels (pixel shuffle)."""

from __future__ import annotations

from typing import Any

from tessera.hosts.architecture import RasterFamily, family
from tessera.hosts.families.llava import feature_block


@family("internvl", title="InternVL")
class InternVL(RasterFamily):
    """See the module."""

    def feature_block(self, model: Any) -> int:
        return feature_block(model.config)

    def stride(self, model: Any) -> int:
        return round(1 / model.config.downsample_ratio)
