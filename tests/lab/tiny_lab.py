"""A composed model of a hundredth of a second, with the world's words, for what the lab measures on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tessera.models import reference
from tessera.models.configuration import TesseraConfig
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.processing import TesseraProcessor
from tessera.models.tokenizer import build_tokenizer
from tessera.world.vocabulary import words

SIDE = 64


def tiny(seed: int = 0) -> tuple[Any, Any]:
    """(model, processor): one encoder of one block, a raster of 4 x 4 tokens, 4 decoder layers."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(words())
    encoder = {"kind": "conv_vit", "image_size": SIDE, "patch_size": 8, "width": 24, "depth": 1, "heads": 2}
    config = TesseraConfig(
        parts={
            "encoders": [encoder],
            "experts": {"kind": "single"},
            "tokens": {"kind": "pixel_shuffle", "factor": 2},
            "connector": {"kind": "linear"},
            "coupling": {"kind": "prefix"},
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
    )
    model = TesseraForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    processor = TesseraProcessor(TesseraImageProcessor(SIDE), tokenizer, tokens_per_image=model.tokens_per_image, max_length=512)
    return model, processor


def saved(folder: Path, seed: int = 0) -> Path:
    """The folder with such a model."""
    return reference.save(*tiny(seed), folder, dtype=torch.float32)
