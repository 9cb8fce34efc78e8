"""Flamingo reads images by gated cross-attention between the layers of a frozen language model.

Source: Alayrac et al., "Flamingo: a Visual Language Model for Few-Shot Learning", 2022, arXiv:2204.14198. A perceiver resampler
turns the features of an image into R latents. In front of every n-th layer of the language model a new block lets the text
attend to them, x + tanh(a) attention, x + tanh(b) feed-forward, with a = b = 0 at first, so that training starts from the
language model as it was. A text token attends to the last image before it only. The image itself is one placeholder in the
text. Encoders and language model stay frozen.

Deviations: the resampler stands behind the connector (a linear one comes closest) and so has the language model's width; a clip
is several images, each with latents of its own, so times are not embedded (`tessera.nn.resampler` can); the block stands
in front of layers n, 2n, ... (as in open_flamingo), counted from 1; the placeholder has the embedding that the language
model has for it, which is not trained. In packed rows "before" means in the same question or in the shared prefix.

Shapes: B rows, T tokens, M images, n features of an image, R latents, E channels of the language model, I most images of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.config import config
from tessera.models.coupling import Coupling, Pass, decoder_layers, hidden_of, require, with_hidden
from tessera.nn.cross_attention import GatedCrossAttention
from tessera.nn.resampler import PerceiverResampler
from tessera.registry import part


@dataclass(slots=True)
class Memory:
    """What later passes must know: latents [B, I, R, E] of the images so far, and their slots [B, K]: the number of the image
    that stands at a place of the text, -1 elsewhere."""

    latents: Tensor | None
    slots: Tensor


@part("flamingo", socket="couplings", catalog=137)
class Flamingo(Coupling):
    """Perceiver resampler and gated cross-attention blocks; one placeholder per image."""

    @config
    class Config:
        """latents R per image; depth of the resampler; every n-th layer of the language model gets a block; heads and
        head_width of all attentions; multiple: hidden width of all feed-forwards, as a multiple of E."""

        latents: int = 64
        depth: int = 6
        every: int = 1
        heads: int = 8
        head_width: int = 64
        multiple: int = 4

        def validate_sizes(self) -> None:
            for name in ("latents", "depth", "every", "heads", "head_width", "multiple"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")

    def __init__(self, config: Config, width: int, language_model: nn.Module | None = None, **context: Any) -> None:
        super().__init__(config, width, language_model, **context)
        layers = decoder_layers(language_model, "flamingo")
        self.resampler = PerceiverResampler(width, config.latents, config.depth, config.heads, config.head_width, config.multiple)
        chosen = range(config.every - 1, len(layers), config.every)
        self.blocks = nn.ModuleList(
            GatedCrossAttention(width, width, config.heads, config.head_width, config.multiple) for _ in chosen
        )
        for block, layer in enumerate(chosen):
            layers[layer].register_forward_pre_hook(partial(self._insert, block), with_kwargs=True)

    def receive(self, features: Tensor) -> Tensor:
        """[M, n, E] -> latents [M, R, E]."""
        return self.resampler(features)

    def placeholders(self, count: int) -> int:
        """One per image."""
        return 1

    def forward(self, embeddings: Tensor, placeholders: Tensor, features: Tensor) -> Tensor:
        """Leaves the embeddings [B, T, E] as they are. Raises `UserError` unless each image has one placeholder."""
        require(placeholders, len(features), 1)
        return embeddings

    def begin(self, now: Pass) -> None:
        """Sorts the new images by rows and finds the last image before every token."""
        past: Memory | None = now.memory
        earlier = 0 if past is None or past.latents is None else past.latents.shape[1]
        known = None if past is None else past.slots[:, : now.cached]
        missing = now.cached - (0 if known is None else known.shape[1])
        blank = torch.full_like(now.placeholders[:, :1], -1, dtype=torch.int64).expand(-1, missing)
        number = now.placeholders.cumsum(1) - 1
        new = torch.where(now.placeholders, number + earlier, -1)
        slots = torch.cat([part for part in (known, blank, new) if part is not None], dim=1)
        latents = None if past is None else past.latents
        if now.features is not None:
            fresh = by_row(now.features, now.placeholders.sum(1))
            latents = fresh if latents is None else torch.cat([latents, fresh], dim=1)
        now.memory = Memory(latents, slots)
        now.notes["latents"] = None if latents is None else latents.flatten(1, 2)
        if latents is not None:
            image = last_image(slots, now.segments, new.shape[1])
            own = image[..., None] == torch.arange(latents.shape[1], device=image.device)
            now.notes["seen"] = own.repeat_interleave(latents.shape[2], dim=2)

    def _insert(self, block: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.now is None:
            return None
        notes = self.now.notes
        made = self.blocks[block](hidden_of(args, kwargs), notes["latents"], notes.get("seen"))
        return with_hidden(args, kwargs, made)


def by_row(features: Tensor, counts: Tensor) -> Tensor:
    """Features [M, R, E] of images in order, counts [B] images of each row -> [B, I, R, E], zeros where a row has fewer."""
    rows = features.split(counts.tolist())
    most = max(len(row) for row in rows)
    return torch.stack([F.pad(row, (0, 0, 0, 0, 0, most - len(row))) for row in rows])


def last_image(slots: Tensor, segments: Tensor | None, length: int) -> Tensor:
    """Number of the last image before (or at) each of the last `length` tokens, [B, length]; -1 where there is none.

    slots [B, K]: images are numbered in the order in which they stand. segments [B, K]: as in `tessera.nn.segments`.
    """
    if segments is None:
        return slots.cummax(1).values[:, slots.shape[1] - length :]
    from tessera.nn.segments import segment_mask

    return slots[:, None].where(segment_mask(segments, length)[:, 0], -1).amax(-1)


TINY = {"kind": "flamingo", "latents": 4, "depth": 1, "heads": 2, "head_width": 8}
