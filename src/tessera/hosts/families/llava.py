"""LLaVA: all patches of a hidden layer of CLIP, SigLIP or Pixtral become one token each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tessera.hosts.architecture import RasterFamily, family, patch_size
from tessera.nn.layout import Block, Layout


def feature_block(config: Any) -> int:
    """The block of `vision_feature_layer`, which counts hidden states (the first: embeddings): -2 is block -2, 3 block 2."""
    layer = config.vision_feature_layer
    layer = layer[-1] if isinstance(layer, (list, tuple)) else layer
    return layer if layer < 0 else max(layer - 1, 0)


def keeps_class_token(config: Any, inputs: Mapping[str, Any]) -> bool:
    """Whether the first token of the tower reaches the language model too."""
    return (inputs.get("vision_feature_select_strategy") or config.vision_feature_select_strategy) == "full"


@family("llava", title="LLaVA")
class Llava(RasterFamily):
    """See the module."""

    def feature_block(self, model: Any) -> int:
        return feature_block(model.config)

    def grids(self, model: Any, inputs: Mapping[str, Any]) -> list[tuple[int, int]]:
        sizes, side = inputs.get("image_sizes"), patch_size(model)
        if sizes is None:
            return super().grids(model, inputs)
        return [(int(height) // side, int(width) // side) for height, width in sizes]  # a Pixtral tower

    def token_scores(self, model: Any, raw: Sequence[Tensor], inputs: Mapping[str, Any]) -> Tensor:
        scores = super().token_scores(model, raw, inputs)
        if not self._class_token_in_prompt(model, inputs):
            return scores
        rows = scores.view(len(self.grids(model, inputs)), -1)
        return torch.cat([rows.new_full((len(rows), 1), torch.inf), rows], dim=1).flatten()

    def layouts(self, model: Any, inputs: Mapping[str, Any]) -> list[Layout]:
        first = int(self._class_token_in_prompt(model, inputs))
        grids = self.grids(model, inputs)
        return [Layout(first + rows * columns, (Block(first, rows, columns),)) for rows, columns in grids]

    def _class_token_in_prompt(self, model: Any, inputs: Mapping[str, Any]) -> bool:
        tower = self.tower(self.base(model))
        return tower is not None and self.has_class_token(tower) and keeps_class_token(model.config, inputs)
