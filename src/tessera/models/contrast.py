"""The contract of socket `contrastive`: how a dual encoder's image and text tokens become embeddings, are compared, and learn.

A dual encoder has one part of this socket, picked by name in its configuration (`contrastive={"kind": "clip"}`). It is built with

    width       D, channels of the image tower's tokens
    out_width   E, channels of the shared space, in which the text tower's tokens come already
    heads       heads for parts that pool by attention

and is used by the model alone: `TesseraDualEncoder.embed_images`, `.embed_texts` and `.forward`. Comparing needs no tower, so
embeddings can be kept.

Shapes: I images, N tokens of an image, X texts, T tokens of a text, K of either, L vectors of each, E shared channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.errors import UserError


@dataclass(slots=True)
class Embedded:
    """K images or texts in the shared space: vectors [K, L, E], there [K, L] bool (False: padding)."""

    vectors: Tensor
    there: Tensor

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, which: slice) -> Embedded:
        return Embedded(self.vectors[which], self.there[which])

    def unit(self) -> Embedded:
        """Float32 vectors of length 1."""
        return Embedded(F.normalize(self.vectors.float(), dim=-1), self.there)

    def pooled(self) -> Tensor:
        """[K, E]: the mean of the vectors that are there; with one vector each, that vector."""
        weight = self.there.to(self.vectors.dtype).unsqueeze(-1)
        return (self.vectors * weight).sum(1) / weight.sum(1).clamp_min(1)

    @staticmethod
    def cat(parts: Sequence[Embedded]) -> Embedded:
        """Several as one, padded at the end to the longest."""
        longest = max(p.vectors.shape[1] for p in parts)
        room = [longest - p.vectors.shape[1] for p in parts]
        return Embedded(
            torch.cat([F.pad(p.vectors, (0, 0, 0, n)) for p, n in zip(parts, room, strict=True)]),
            torch.cat([F.pad(p.there, (0, n)) for p, n in zip(parts, room, strict=True)]),
        )


class Contrast(nn.Module, ABC):
    """Tokens of images and texts -> embeddings, how alike they are, and the loss."""

    Config: Any

    @abstractmethod
    def images(self, features: Tensor) -> Embedded:
        """The image tower's tokens [I, N, D] -> I embeddings, not normalised."""

    @abstractmethod
    def texts(self, tokens: Tensor, there: Tensor) -> Embedded:
        """The text tower's projected tokens [X, T, E] and which of them are there [X, T] -> X embeddings, not normalised."""

    @abstractmethod
    def similarity(self, images: Embedded, texts: Embedded) -> tuple[Tensor, Tensor]:
        """Of unit embeddings: image to text [I, X], text to image [X, I], in [-1, 1]; the second need not be the first turned."""

    def classify(self, images: Embedded, prompts: Sequence[Embedded]) -> Tensor:
        """Similarity [I, C] of images with C classes from one or more prompts of each: the mean over the prompts.

        prompts: per template the C texts, unit length.
        """
        return torch.stack([self.similarity(images, texts)[0] for texts in prompts]).mean(0)

    def forward(self, images: Embedded, texts: Embedded, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [I, X], [X, I] of unit embeddings; scale: exp of the learned temperature."""
        per_image, per_text = self.similarity(images, texts)
        return scale * per_image, scale * per_text

    def loss(self, images: Embedded, texts: Embedded, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The scalar loss of unit embeddings of which image i belongs to text i, and the logits that it was taken from.

        In training on several processes the negatives are those of all processes, and so are the logits.
        """
        per_image, per_text = self(gathered(images), gathered(texts), scale)
        return contrastive_loss(per_image, per_text), per_image, per_text


def gathered(embedded: Embedded) -> Embedded:
    """The embeddings of all processes in the order of their ranks, with gradients; of one process, or without gradients, its own.

    Every process has to compute the same loss from them; then the mean of the processes' gradients is that of the whole batch.
    """
    from torch import distributed

    alone = not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1
    if alone or not torch.is_grad_enabled():
        return embedded
    mine = torch.tensor(embedded.there.shape, device=embedded.there.device)
    sizes = [torch.zeros_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(sizes, mine)
    counts = [int(size[0]) for size in sizes]
    rows, length = max(counts) - len(embedded), max(int(size[1]) for size in sizes) - embedded.there.shape[1]
    vectors = _Gathered.apply(F.pad(embedded.vectors, (0, 0, 0, length, 0, rows)))
    padded = F.pad(embedded.there, (0, length, 0, rows)).to(torch.uint8).contiguous()
    there = [torch.zeros_like(padded) for _ in counts]
    distributed.all_gather(there, padded)
    return Embedded(
        torch.cat([v[:n] for v, n in zip(vectors, counts, strict=True)]),
        torch.cat([t[:n] for t, n in zip(there, counts, strict=True)]).bool(),
    )


class _Gathered(torch.autograd.Function):
    """[K, L, E] of every process -> [P, K, L, E], alike on all P of them."""

    @staticmethod
    def forward(ctx: Any, mine: Tensor) -> Tensor:
        from torch import distributed

        ctx.rank = distributed.get_rank()
        every = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
        distributed.all_gather(every, mine.contiguous())
        return torch.stack(every)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # The other processes' losses are this one's, and so are their gradients: nothing has to be sent.
        return gradient[ctx.rank] * len(gradient)


def contrastive_loss(per_image: Tensor, per_text: Tensor | None = None) -> Tensor:
    """Symmetric cross-entropy of [K, K] logits whose diagonal is right; per_text: the transpose unless given.

    Raises `UserError` for logits that are not square.
    """
    per_text = per_image.t() if per_text is None else per_text
    if per_image.shape[0] != per_image.shape[1]:
        raise UserError(
            f"a contrastive loss pairs images and texts, but there are {per_image.shape[0]} and {per_image.shape[1]}."
        )
    target = torch.arange(len(per_image), device=per_image.device)
    return (F.cross_entropy(per_image, target) + F.cross_entropy(per_text, target)) / 2
