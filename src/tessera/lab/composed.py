"""A tiny composed model for exact claims about couplings. Imports torch inside functions only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

ENCODER = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 3, "heads": 2}
IMAGE = 4
"""Id of the placeholder in the tiny model's text."""


def tiny(coupling: Mapping[str, Any], *, layers: int = 4, seed: int = 0, **parts: Any) -> Any:
    """Random weights: images of 32 pixels, a language model of `layers` x 32, 64 words; an encoder stands in front unless the
    coupling reads pixels."""
    import torch

    from tessera.models import parts as specs
    from tessera.models.configuration import TesseraConfig
    from tessera.models.modeling import TesseraForConditionalGeneration

    if specs.sees(coupling, "coupling") != "pixels":
        parts = {"encoders": [dict(ENCODER)], **parts}
    text = {
        "model_type": "qwen3", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 256,
        "tie_word_embeddings": True, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = TesseraConfig(parts={"coupling": dict(coupling), **parts}, text_config=text, image_token_id=IMAGE)
        return TesseraForConditionalGeneration._from_config(config, attn_implementation="eager").eval()


def pictures(count: int, seed: int = 1) -> Tensor:
    """Noise [count, 3, 32, 32]."""
    import torch

    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def prefix(model: Any, images: int) -> list[int]:
    """Token ids of `<bos>` and the placeholders of some images."""
    return [1, *([5, *[IMAGE] * model.tokens_per_image] * images)]
