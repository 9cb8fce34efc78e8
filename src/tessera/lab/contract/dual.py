"""Contrastive parts: Tessera's dual encoder is made around the part at tiny size, as `models` makes a composed model.

Legend: B rows, T words of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tessera.lab.contract.models import ENCODER, WORDS, ModelFixture
from tessera.models.tokenizer import BOS, EOS, PAD


class DualFixture(ModelFixture):
    """A part of Tessera's dual encoder."""

    def described(self, **changes: Any) -> Any:
        """A tiny dual encoder."""
        from tessera.models.configuration import TesseraDualEncoderConfig

        sizes = dict(projection_dim=16, pool_heads=2, text_width=16, text_depth=2, text_heads=2, vocab_size=64)
        spec = {"kind": self.part.name, **self.options, **changes}
        around = dict(getattr(self.module, "TINY_MODEL", {}))
        return TesseraDualEncoderConfig(**{"encoder": dict(ENCODER), "contrastive": spec, **sizes, **around})

    def build(self, described: Any) -> Any:
        """See `ModelFixture`."""
        from tessera.models.dual_encoder import TesseraDualEncoder

        return TesseraDualEncoder(described)

    def modules(self, model: Any) -> list[nn.Module]:
        """The contrastive part."""
        return [model.contrast]

    def inputs(self, model: Any, rows: Sequence[int], side: str = "left") -> dict[str, Any]:
        """An image and a text of 4 + 3 r words for each row."""
        texts, pixels = [], []
        for row in rows:
            generator = torch.Generator().manual_seed(row + 11)
            texts.append([BOS, *torch.randint(*WORDS, (4 + 3 * row,), generator=generator).tolist(), EOS])
            pixels.append(torch.randn(3, ENCODER["image_size"], ENCODER["image_size"], generator=generator))  # type: ignore[call-overload]
        longest = max(map(len, texts))
        ids = torch.tensor(
            [[*[PAD] * (longest - len(t)), *t] if side == "left" else [*t, *[PAD] * (longest - len(t))] for t in texts]
        )
        return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "pixel_values": torch.stack(pixels)}

    def outputs(self, model: Any, inputs: dict[str, Any]) -> list[Tensor]:
        """How each image and its own text compare, in both directions."""
        out = model(**inputs)
        return list(torch.stack([out.logits_per_image.diagonal(), out.logits_per_text.diagonal()], 1))

    def loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        """The part's."""
        found: Tensor = model(**inputs, return_loss=True).loss
        return found
