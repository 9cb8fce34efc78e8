"""LLaVA-NeXT and LLaVA-OneVision: a thumbnail, then all tiles as one raster without padding, a newline token behind each row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tessera.hosts.architecture import RasterFamily, family
from tessera.hosts.families.llava import feature_block
from tessera.nn.layout import Block, Layout


@family("llava_next", title="LLaVA-NeXT")
class LlavaNext(RasterFamily):
    """See the module."""

    def feature_block(self, model: Any) -> int:
        return feature_block(model.config)

    def token_scores(self, model: Any, raw: Sequence[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        rows, columns = self._grid(model)
        views = self.flat_scores(model, raw).view(-1, rows * columns).float()
        return torch.cat(self._pack(model, views, inputs))

    def layouts(self, model: Any, inputs: Mapping[str, Any]) -> list[Layout]:
        rows, columns = self._grid(model)
        views = torch.zeros(sum(self.views(model, inputs)), rows * columns)
        found = []
        for packed, count in zip(self._pack(model, views, inputs), self.views(model, inputs), strict=True):
            tokens = packed.numel()
            blocks = [Block(0, rows, columns)]
            if count > 1:
                height = int(packed.isinf().sum())
                width = (tokens - rows * columns - height) // height
                blocks.append(Block(rows * columns, height, width, newline=True, whole=False))
            found.append(Layout(tokens, tuple(blocks)))
        return found

    def views(self, model: Any, inputs: Mapping[str, Any]) -> list[int]:
        """How many views the tower reads of each image: the thumbnail and the tiles."""
        from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

        config = model.config
        side = config.vision_config.image_size
        return [image_size_to_num_patches(size, config.image_grid_pinpoints, side) for size in inputs["image_sizes"]]

    def pack_options(self, model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """What this family's `pack_image_features` wants beside features and sizes."""
        return {"vision_feature_select_strategy": "default"}

    def _pack(self, model: Any, views: Tensor, inputs: Mapping[str, Any]) -> list[Tensor]:
        """Values [views, patches] as the model packs features: one [tokens] per image, newlines infinite."""
        base: Any = self.base(model)
        parts = list(views[..., None].split(self.views(model, inputs)))
        newline = views.new_full((1,), torch.inf)
        options = self.pack_options(model, inputs)
        packed, _ = base.pack_image_features(parts, inputs["image_sizes"], image_newline=newline, **options)
        return [image.flatten() for image in packed]

    def _grid(self, model: Any) -> tuple[int, int]:
        config = model.config.vision_config
        side = config.image_size // config.patch_size
        return side, side


@family("llava_onevision", title="LLaVA-OneVision")
class LlavaOneVision(LlavaNext):
    """Images that share a row are not cut into tiles."""

    def views(self, model: Any, inputs: Mapping[str, Any]) -> list[int]:
        counts = inputs.get("batch_num_images")
        cut = super().views(model, inputs)
        if counts is None:
            return cut
        alone = [int(count) == 1 for count in counts for _ in range(int(count))]
        return [views if single else 1 for views, single in zip(cut, alone, strict=True)]

    def pack_options(self, model: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
        return {"vision_aspect_ratio": inputs.get("vision_aspect_ratio") or model.config.vision_aspect_ratio}
