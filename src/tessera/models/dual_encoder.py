"""A dual encoder: images and texts in one space, trained by contrast.

The image tower is any encoder part; how its tokens and those of the text tower become embeddings, are compared and learn is a
part of socket `contrastive` (`tessera.models.contrast`), named in the configuration.

Shapes: I images, N tokens of an image, X texts, T tokens of a text, E channels of the shared space.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.utils.generic import ModelOutput

from tessera.errors import UserError
from tessera.models import parts as part_specs
from tessera.models.configuration import TesseraDualEncoderConfig
from tessera.models.contrast import Contrast, Embedded
from tessera.models.text_tower import TextTower
from tessera.models.vision import TesseraPreTrainedModel

_MAX_LOGIT_SCALE = 100.0


@dataclass
class DualEncoderOutput(ModelOutput):
    """What a forward returns.

    loss: scalar or None; logits_per_image [I, X]; logits_per_text [X, I] (for some parts not the first one turned);
    image_embeds [I, E], text_embeds [X, E]: unit vectors, of parts with several vectors for each their mean.
    """

    loss: Tensor | None = None
    logits_per_image: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    image_embeds: Tensor | None = None


class TesseraDualEncoder(TesseraPreTrainedModel):
    """Image tower, text tower, contrastive part, learned temperature."""

    config_class = TesseraDualEncoderConfig
    config: TesseraDualEncoderConfig

    def __init__(self, config: TesseraDualEncoderConfig) -> None:
        super().__init__(config)
        self.encoder = part_specs.create("encoders", config.encoder, "encoder", backend=config)
        # The contrastive part; saved folders have known its weights by this name since the only choice was how to pool.
        self.pool: Contrast = part_specs.create(
            "contrastive",
            config.contrastive,
            "contrastive",
            width=self.encoder.width,
            out_width=config.projection_dim,
            heads=config.pool_heads,
        )
        self.text = TextTower(config)
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if module is self:
            init.constant_(self.logit_scale, -math.log(self.config.temperature))

    @property
    def contrast(self) -> Contrast:
        """The contrastive part."""
        return self.pool

    @property
    def scale(self) -> Tensor:
        """What similarities are multiplied with: exp of the learned temperature, at most 100."""
        return self.logit_scale.float().exp().clamp_max(_MAX_LOGIT_SCALE)

    def sockets(self) -> dict[str, nn.Module]:
        """What a training stage or a recipe's start can name; `rest` is what stands in none of the others, the temperature."""
        return {"encoder": self.encoder, "contrastive": self.pool, "text": self.text, "rest": self}

    def get_input_embeddings(self) -> nn.Module:
        return self.text.embed

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text.embed = value  # type: ignore[assignment]

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """pixel_values [I, 3, S, S] -> [I, E], not normalised; of parts with several vectors for each image their mean."""
        return self._images(pixel_values).pooled()

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """input_ids [X, T], attention_mask [X, T] or None (then pad_token_id says) -> [X, E], as for images."""
        return self.contrast.texts(*self.text(input_ids, attention_mask)).pooled()

    def embed_images(self, pixel_values: Tensor) -> Embedded:
        """pixel_values [I, 3, S, S] -> I unit embeddings, as the contrastive part compares them."""
        return self._images(pixel_values).unit()

    def embed_texts(
        self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> Embedded:
        """input_ids [X, T] or inputs_embeds [X, T, W], attention_mask [X, T] -> X unit embeddings."""
        return self.contrast.texts(*self.text(input_ids, attention_mask, inputs_embeds)).unit()

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_loss: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> DualEncoderOutput | tuple[Any, ...]:
        """input_ids [X, T], pixel_values [I, 3, S, S]. return_loss: the contrastive part's loss, image i belongs to text i.

        Raises `UserError` if one is missing, or for a loss over unequal numbers.
        """
        if input_ids is None or pixel_values is None:
            raise UserError("give both input_ids and pixel_values, or call get_text_features or get_image_features.")
        images, texts = self.embed_images(pixel_values), self.embed_texts(input_ids, attention_mask)
        loss = None
        if return_loss:
            if len(images) != len(texts):
                raise UserError(f"a contrastive loss pairs images and texts, but there are {len(images)} and {len(texts)}.")
            loss, per_image, per_text = self.contrast.loss(images, texts, self.scale)
        else:
            per_image, per_text = self.contrast(images, texts, self.scale)
        output = DualEncoderOutput(
            loss=loss,
            logits_per_image=per_image,
            logits_per_text=per_text,
            text_embeds=nn.functional.normalize(texts.pooled(), dim=-1),
            image_embeds=nn.functional.normalize(images.pooled(), dim=-1),
        )
        return output if return_dict is not False else output.to_tuple()

    def _images(self, pixel_values: Tensor) -> Embedded:
        return self.contrast.images(self.encoder(pixel_values.to(next(self.encoder.parameters()).dtype)))
