"""Dual encoders that are small enough to adapt in a test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel

from tessera.models.configuration import TesseraDualEncoderConfig
from tessera.models.dual_encoder import TesseraDualEncoder
from tessera.models.few_shot import FrozenDual
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.processing import TesseraDualProcessor
from tessera.models.tokenizer import build_tokenizer


def tiny_duals(prompts: Sequence[str]) -> dict[str, FrozenDual]:
    """Dual encoders with random weights for images of 16 pixels: Tessera's, and transformers' CLIP with its original shape."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["a", "picture", "of", "dog", "fire", "engine", "cat", "X"])
    processor = TesseraDualProcessor(TesseraImageProcessor(16), tokenizer, 24)
    ours = TesseraDualEncoder(
        TesseraDualEncoderConfig(
            encoder={"kind": "conv_vit", "image_size": 16, "width": 32, "depth": 1, "heads": 2},
            projection_dim=24,
            vocab_size=len(tokenizer),
            text_width=32,
            text_depth=2,
            text_heads=2,
            max_position_embeddings=24,
        )
    )
    # What begins and ends a text, as CLIP's own tokenizer has it.
    framed = build_tokenizer(["a", "picture", "of", "dog", "fire", "engine", "cat", "X"])
    framed.backend_tokenizer.post_processor = _frame(framed)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 24, "pad_token_id": 0, "bos_token_id": 1}
    theirs = CLIPModel(
        CLIPConfig(
            text_config={**tower, **text, "eos_token_id": len(tokenizer) - 1},
            vision_config={**tower, "image_size": 16, "patch_size": 8},
            projection_dim=24,
        )
    )
    return {
        "Tessera": FrozenDual(ours, processor, prompts),
        "CLIP of transformers": FrozenDual(theirs, TesseraDualProcessor(TesseraImageProcessor(16), framed, 24), prompts),
    }


def _frame(tokenizer: Any) -> Any:
    last = len(tokenizer) - 1
    begin, end = tokenizer.bos_token, tokenizer.convert_ids_to_tokens(last)
    return TemplateProcessing(single=f"{begin} $A {end}", special_tokens=[(begin, 1), (end, last)])
