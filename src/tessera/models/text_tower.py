"""The text tower of a dual encoder: a pre-norm transformer whose tokens end in the shared space.

Shapes: X texts, T tokens, W channels of the tower, E of the shared space.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from tessera.errors import UserError
from tessera.nn import initialise
from tessera.nn.segments import additive
from tessera.nn.vit import Backend, FeedForward, SelfAttention

if TYPE_CHECKING:
    from tessera.models.configuration import TesseraDualEncoderConfig


class TextMLP(FeedForward):
    """Two linear layers around an activation of `configuration.ACTIVATIONS`. [X, T, W] -> [X, T, W]."""

    def __init__(self, width: int, hidden: int, activation: str) -> None:
        super().__init__(width, hidden)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.activation == "quick_gelu":
            return self.down(x * torch.sigmoid(1.702 * x))
        return self.down(F.gelu(x, approximate="tanh" if self.activation == "gelu_tanh" else "none"))


class TextBlock(nn.Module):
    """Pre-norm transformer block. [X, T, W] -> [X, T, W]."""

    def __init__(self, width: int, heads: int, backend: Backend, activation: str = "gelu_tanh") -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, backend)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = TextMLP(width, 4 * width, activation)

    def forward(self, x: Tensor, attention_mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.norm1(x), attention_mask)
        return x + self.mlp(self.norm2(x))


class TextTower(nn.Module):
    """Token ids [X, T] -> tokens [X, T, E] and which of them are there [X, T]; bidirectional unless `text_causal`."""

    def __init__(self, config: TesseraDualEncoderConfig) -> None:
        super().__init__()
        width = config.text_width
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, width)
        self.position = nn.Parameter(torch.empty(config.max_position_embeddings, width))
        self.blocks = nn.ModuleList(
            TextBlock(width, config.text_heads, config, config.text_activation) for _ in range(config.text_depth)
        )
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, config.projection_dim, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """As the image tower; the projection keeps the variance of its input."""
        initialise.tree(self)
        init.normal_(self.position, std=0.02)
        init.normal_(self.project.weight, std=self.project.in_features**-0.5)
        std = 0.02 / math.sqrt(2 * len(self.blocks))
        for block in self.blocks:
            assert isinstance(block, TextBlock)
            initialise.linear(block.attention.out, std)
            initialise.linear(block.mlp.down, std)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """input_ids [X, T], or inputs_embeds [X, T, W] with an attention_mask [X, T]; without a mask `pad_token_id` says what is
        padding. Raises `UserError` for a text that is too long, or embeddings without a mask."""
        if inputs_embeds is None:
            assert input_ids is not None
            self._check(input_ids.shape[1])
            there = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()
            inputs_embeds = self.embed(input_ids)
        elif attention_mask is None:
            raise UserError("embedded texts need an attention_mask that says which tokens are there.")
        else:
            self._check(inputs_embeds.shape[1])
            there = attention_mask.bool()
        length = inputs_embeds.shape[1]
        # Counted over the tokens that are there, so that a text means the same however it is padded.
        places = (there.long().cumsum(1) - 1).clamp_min(0)
        x = inputs_embeds + self.position[places]
        visible = there[:, None, None, :].expand(-1, 1, length, length)
        if self.config.text_causal:
            visible = visible & torch.ones(length, length, dtype=torch.bool, device=x.device).tril()
        visible = visible | torch.eye(length, dtype=torch.bool, device=x.device)
        eager = self.config._attn_implementation in (None, "eager")
        mask = additive(visible, x.dtype) if eager else visible
        for block in self.blocks:
            x = block(x, mask)
        return self.project(self.norm(x)), there

    def _check(self, length: int) -> None:
        if length > len(self.position):
            raise UserError(
                f"a text has {length} tokens, {length - len(self.position)} more than the {len(self.position)} of this model."
            )
