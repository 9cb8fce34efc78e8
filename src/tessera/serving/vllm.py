"""Folders that Tessera writes, served by vLLM through its transformers backend.

`register` is the entry point `tessera` of `vllm.general_plugins`: vLLM calls it in each of its processes when Tessera is
installed beside it. Then `vllm serve FOLDER` works as for a model of transformers itself. What the backend asks of a model:

- its architecture is found in `transformers`, and says `is_backend_compatible()`
- `AutoModel` gives the model without an output layer, whose attention goes through the registry of attention functions, and whose
  `get_image_features` gives [images, n, E]; names in the checkpoint are its own behind `model.` (older ones are renamed)
- the processor tells where each image's placeholders are (`return_text_replacement_offsets`, `return_mm_token_type_ids`,
  `image_token`, `image_token_id`) and how many there are (`_get_num_multimodal_tokens`)

vLLM does not read `suppress_tokens`, so a model may say a placeholder there, as text.

Source: vLLM's documentation, "Supported models: writing custom models", and its `model_executor/models/transformers`.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

from tessera.errors import UserError
from tessera.models.composed import TesseraModel
from tessera.models.configuration import TesseraConfig
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.names import renamings


class TesseraBackbone(TesseraModel):
    """The composed model without its output layer, which vLLM brings itself."""

    def __init__(self, config: TesseraConfig) -> None:
        """Raises `UserError` for a coupling that does more than put image features among the embeddings, as vLLM does itself."""
        super().__init__(config)
        kind = (config.parts or {})["coupling"]["kind"]
        if kind != "prefix":
            raise UserError(f"vLLM can serve models whose coupling is 'prefix', not {kind!r}: it puts image features in itself.")

    def get_image_features(self, pixel_values: Tensor, question: None = None, **_: Any) -> Tensor:  # type: ignore[override]
        """See `TesseraModel.get_image_features`; the question is not known, and what else the processor gives is not needed."""
        return super().get_image_features(pixel_values)


def register() -> None:
    """Makes vLLM's transformers backend find Tessera's composed model. Harmless to call again."""
    import transformers
    from transformers.conversion_mapping import register_checkpoint_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    from tessera.models.auto import register_models

    register_models()
    transformers.AutoModel.register(TesseraConfig, TesseraBackbone, exist_ok=True)
    older = [WeightRenaming(source_patterns=old, target_patterns=new) for old, new in renamings(None).items()]
    register_checkpoint_conversion_mapping(TesseraBackbone.__name__, older, overwrite=True)
    # transformers imports itself anew while its processors are imported; vLLM's registry may hold the module from before.
    registry = sys.modules.get("vllm.model_executor.models.registry")
    for module in (transformers, sys.modules["transformers"], getattr(registry, "transformers", None)):
        if module is not None:
            setattr(module, TesseraForConditionalGeneration.__name__, TesseraForConditionalGeneration)
