"""A dual encoder: images and texts in one space, trained by contrast.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision (CLIP)", 2021,
arXiv:2103.00020. Deviations: the image tower is any encoder part, pooled by attention with one learned query
(as in SigLIP, Zhai et al., 2023, arXiv:2303.15343); the text tower is bidirectional, pooled by the mean over
its tokens.

Shapes: I images, N patches, X texts, T tokens, D channels of a tower, E of the shared space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from tessera.errors import UserError
from tessera.models import parts as part_specs
from tessera.models.configuration import TesseraDualEncoderConfig
from tessera.models.vision import TesseraPreTrainedModel
from tessera.nn import initialise
from tessera.nn.segments import additive
from tessera.nn.vit import MLP, Backend, SelfAttention

_MAX_LOGIT_SCALE = 100.0


@dataclass
class DualEncoderOutput(ModelOutput):
    """What a forward returns.

    loss: scalar or None; logits_per_image [I, X]; logits_per_text [X, I]; embeddings [I, E], [X, E] of length 1.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None


class AttentionPool(nn.Module):
    """One learned query attends to all patches. [I, N, D] -> [I, E]."""

    def __init__(self, width: int, out_width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"an image tower of width {width} cannot be pooled by {heads} heads; set pool_heads.")
        self.heads = heads
        self.query = nn.Parameter(torch.empty(width))
        self.norm = nn.LayerNorm(width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.project = nn.Linear(width, out_width, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02; the projection keeps the variance of its input."""
        initialise.tree(self)
        init.normal_(self.query, std=0.02)
        init.normal_(self.project.weight, std=self.project.in_features**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        images, count, width = x.shape
        parts = self.key_value(self.norm(x)).view(images, count, 2, self.heads, width // self.heads)
        key, value = parts.permute(2, 0, 3, 1, 4)
        query = self.query.to(key.dtype).view(1, self.heads, 1, -1) * (width // self.heads) ** -0.5
        pooled = (query @ key.transpose(-1, -2)).softmax(-1) @ value
        return self.project(self.out(pooled.reshape(images, width)))


class TextBlock(nn.Module):
    """Pre-norm transformer block. [X, T, D] -> [X, T, D]."""

    def __init__(self, width: int, heads: int, backend: Backend) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, backend)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width, 4 * width)

    def forward(self, x: Tensor, attention_mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.norm1(x), attention_mask)
        return x + self.mlp(self.norm2(x))


class TextTower(nn.Module):
    """Token ids [X, T] -> [X, E]: bidirectional transformer, mean over the tokens that are there."""

    def __init__(self, config: TesseraDualEncoderConfig) -> None:
        super().__init__()
        width = config.text_width
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, width)
        self.position = nn.Parameter(torch.empty(config.max_position_embeddings, width))
        self.blocks = nn.ModuleList(TextBlock(width, config.text_heads, config) for _ in range(config.text_depth))
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

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        length = input_ids.shape[1]
        if length > len(self.position):
            raise UserError(
                f"a text has {length} tokens, {length - len(self.position)} more than the {len(self.position)} of this model."
            )
        there = input_ids != self.config.pad_token_id if attention_mask is None else attention_mask.bool()
        # Counted over the tokens that are there, so that a text means the same however it is padded.
        places = (there.long().cumsum(1) - 1).clamp_min(0)
        x = self.embed(input_ids) + self.position[places]
        visible = there[:, None, None, :].expand(-1, 1, length, length) | torch.eye(length, dtype=torch.bool, device=x.device)
        eager = self.config._attn_implementation in (None, "eager")
        mask = additive(visible, x.dtype) if eager else visible
        for block in self.blocks:
            x = block(x, mask)
        weight = there.to(x.dtype).unsqueeze(-1)
        mean = (self.norm(x) * weight).sum(1) / weight.sum(1).clamp_min(1)
        return self.project(mean)


class TesseraDualEncoder(TesseraPreTrainedModel):
    """Image tower, text tower, learned temperature."""

    config_class = TesseraDualEncoderConfig
    config: TesseraDualEncoderConfig

    def __init__(self, config: TesseraDualEncoderConfig) -> None:
        super().__init__(config)
        self.encoder = part_specs.create("encoders", config.encoder, "encoder", backend=config)
        self.pool = AttentionPool(self.encoder.width, config.projection_dim, config.pool_heads)
        self.text = TextTower(config)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.logit_scale, -math.log(self.config.temperature))

    def get_input_embeddings(self) -> nn.Module:
        return self.text.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text.embed = value  # type: ignore[assignment]

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [I, 3, S, S] -> [I, E], not normalised."""
        return self.pool(self.encoder(pixel_values.to(self.pool.out.weight.dtype)))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """input_ids [X, T], attention_mask [X, T] or None (then pad_token_id says) -> [X, E], not
        normalised."""
        return self.text(input_ids, attention_mask)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> DualEncoderOutput | tuple[Any, ...]:
        """input_ids [X, T], pixel_values [I, 3, S, S]. return_loss: symmetric cross-entropy, image i belongs
        to text i.

        Raises `UserError` if one is missing, or for a loss over unequal numbers.
        """
        if input_ids is None or pixel_values is None:
            raise UserError("give both input_ids and pixel_values, or call get_text_features or get_image_features.")
        images = F.normalize(self.get_image_features(pixel_values).float(), dim=-1)
        texts = F.normalize(self.get_text_features(input_ids, attention_mask).float(), dim=-1)
        logits = self.logit_scale.float().exp().clamp_max(_MAX_LOGIT_SCALE) * images @ texts.t()
        loss = None
        if return_loss:
            if len(images) != len(texts):
                raise UserError(f"a contrastive loss pairs images and texts, but there are {len(images)} and {len(texts)}.")
            loss = contrastive_loss(logits)
        output = DualEncoderOutput(
            loss=loss,
            logits_per_image=logits,
            logits_per_text=logits.t(),
            text_embeds=texts,
            image_embeds=images,
        )
        return output if return_dict is not False else output.to_tuple()


def contrastive_loss(logits: Tensor) -> Tensor:
    """Symmetric cross-entropy of [K, K] logits whose diagonal is right."""
    target = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.t(), target)) / 2
