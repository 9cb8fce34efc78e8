"""PaliGemma (every patch of SigLIP is a token) and Gemma 3 (squares of patches are averaged to a fixed number of tokens)."""

from __future__ import annotations

from typing import Any

from tessera.hosts.architecture import RasterFamily, family, patch_size


@family("paligemma", title="PaliGemma")
class PaliGemma(RasterFamily):
    """See the module."""


@family("gemma3", title="Gemma 3")
class Gemma3(RasterFamily):
    """See the module."""

    def stride(self, model: Any) -> int:
        side = model.config.vision_config.image_size // patch_size(model)
        return side // int(model.config.mm_tokens_per_image**0.5)
