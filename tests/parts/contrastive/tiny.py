"""Tiny dual encoders with any contrastive part."""

from __future__ import annotations

from typing import Any

import torch

from tessera.models.configuration import TesseraDualEncoderConfig
from tessera.models.dual_encoder import TesseraDualEncoder

SIZE = 32


def dual(contrastive: dict[str, Any] | None = None, **changes: Any) -> TesseraDualEncoder:
    """Random weights, images of 32 pixels on 16 patches, texts of up to 12 tokens out of 50."""
    torch.manual_seed(0)
    fields: dict[str, Any] = {
        "encoder": {"kind": "conv_vit", "image_size": SIZE, "patch_size": 8, "width": 24, "depth": 1, "heads": 2},
        "contrastive": contrastive,
        "projection_dim": 16,
        "pool_heads": 2,
        "vocab_size": 50,
        "text_width": 24,
        "text_depth": 2,
        "text_heads": 2,
        "max_position_embeddings": 12,
    }
    return TesseraDualEncoder(TesseraDualEncoderConfig(**fields | changes)).eval()


def batch(count: int = 4, length: int = 9) -> dict[str, torch.Tensor]:
    """Random images and texts of several lengths, padded at the end."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1, 50, (count, length), generator=generator)
    there = torch.arange(length) < torch.tensor([length - i % 4 for i in range(count)])[:, None]
    pixels = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return {"input_ids": ids * there, "attention_mask": there.long(), "pixel_values": pixels}
