"""CLIP gives every image and every text one vector and tells the right pair from all others of the batch.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, arXiv:2103.00020.
Embeddings of length 1, cosine similarity times a learned temperature, cross-entropy over the batch in both directions. A class
is named by the mean of its prompts' embeddings, normalised again.

Deviations: by default the image is pooled by attention with one learned query (as in SigLIP, Zhai et al., 2023, arXiv:2303.15343)
and the text by the mean over its tokens, which small towers learn faster; `image="first"` and `text="end"` with `text_causal` and
`text_activation="quick_gelu"` in the model's configuration are the original, for an encoder whose first token is the class token.

Shapes: I images, N tokens of width D, X texts of T tokens, E channels of the shared space, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from tessera.config import config
from tessera.errors import UserError
from tessera.models.contrast import Contrast, Embedded
from tessera.nn import initialise
from tessera.registry import part


@part("clip", socket="contrastive", catalog=326)
class CLIP(Contrast):
    """One vector for each, cosine similarity, symmetric cross-entropy."""

    @config
    class Config:
        """image: pooled by attention with a learned query, as the mean of its tokens, or as the first token (the class token).
        text: the mean of its tokens, or the last one (the end-of-text token of a causal tower)."""

        image: Literal["attention", "mean", "first"] = "attention"
        text: Literal["mean", "end"] = "mean"

    def __init__(self, config: Config, width: int, out_width: int, heads: int = 1) -> None:
        super().__init__()
        self.config = config
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, out_width, bias=False)
        if config.image == "attention":
            if width % heads:
                raise UserError(f"an image tower of width {width} cannot be pooled by {heads} heads; set pool_heads.")
            self.query = nn.Parameter(torch.empty(width))
            self.key_value = nn.Linear(width, 2 * width)
            self.out = nn.Linear(width, width)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02; the projection keeps the variance of its input."""
        initialise.tree(self)
        init.normal_(self.project.weight, std=self.project.in_features**-0.5)
        if self.config.image == "attention":
            init.normal_(self.query, std=0.02)

    def images(self, features: Tensor) -> Embedded:
        """[I, N, D] -> [I, 1, E]."""
        if self.config.image == "first":
            pooled = self.norm(features[:, 0])
        elif self.config.image == "mean":
            pooled = self.norm(features).mean(1)
        else:
            pooled = self._attend(features)
        return _single(self.project(pooled))

    def texts(self, tokens: Tensor, there: Tensor) -> Embedded:
        """[X, T, E], [X, T] -> [X, 1, E]."""
        if self.config.text == "end":
            places = torch.arange(there.shape[1], device=there.device)
            last = (there * places).argmax(1)
            return _single(tokens[torch.arange(len(tokens), device=tokens.device), last])
        return _single(Embedded(tokens, there).pooled())

    def similarity(self, images: Embedded, texts: Embedded) -> tuple[Tensor, Tensor]:
        """[I, X] cosines, and the same turned."""
        cosine = images.vectors[:, 0] @ texts.vectors[:, 0].t()
        return cosine, cosine.t()

    def classify(self, images: Embedded, prompts: Sequence[Embedded]) -> Tensor:
        """[I, C] cosines with the normalised means of the classes' prompts."""
        return self.similarity(images, _single(torch.stack([p.vectors[:, 0] for p in prompts]).mean(0)).unit())[0]

    def _attend(self, features: Tensor) -> Tensor:
        count, tokens, width = features.shape
        parts = self.key_value(self.norm(features)).view(count, tokens, 2, self.heads, width // self.heads)
        key, value = parts.permute(2, 0, 3, 1, 4)
        query = self.query.to(key.dtype).view(1, self.heads, 1, -1) * (width // self.heads) ** -0.5
        pooled = (query @ key.transpose(-1, -2)).softmax(-1) @ value
        return self.out(pooled.reshape(count, width))


def _single(vectors: Tensor) -> Embedded:
    """[K, E] -> one vector each."""
    return Embedded(vectors[:, None], torch.ones(len(vectors), 1, dtype=torch.bool, device=vectors.device))
