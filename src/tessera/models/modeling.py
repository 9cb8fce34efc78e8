"""Tessera's composed vision-language model with its loss and generation: an ordinary transformers model.

Shapes: B rows, T tokens, M images in the whole batch (in the order of their placeholders), n tokens per
image, D visual channels, E language channels, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from tessera.models.composed import TesseraModel, TesseraModelOutput
from tessera.models.configuration import TesseraConfig
from tessera.models.names import HEAD, ComposedPreTrainedModel
from tessera.nn.loss import LossSums, next_token_loss
from tessera.nn.tokens import QuestionText, VisualTokens

__all__ = ["TesseraCausalLMOutput", "TesseraForConditionalGeneration", "TesseraModel", "TesseraModelOutput"]

_IMAGE_INPUTS = ("pixel_values", "visual_features", "image_features")


@dataclass
class TesseraCausalLMOutput(CausalLMOutputWithPast):
    """What a forward returns.

    loss = loss_sum / loss_weight, scalars or None; logits [B, T, V] or None; image_hidden_states [M, n, E].
    """

    loss_sum: Tensor | None = None
    loss_weight: Tensor | None = None
    image_hidden_states: Tensor | None = None


class TesseraForConditionalGeneration(ComposedPreTrainedModel, GenerationMixin):
    """The composed model with its output layer, its loss and `generate`."""

    config_class = TesseraConfig
    config: TesseraConfig
    _tp_plan: ClassVar[dict[str, str]] = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: TesseraConfig) -> None:
        super().__init__(config)
        heads: list[nn.Module] = []
        self.model = TesseraModel(config, heads)
        [self.lm_head] = heads
        self._tied_weights_keys = self.model.tied_names
        self.post_init()
        if self.generation_config is not None:  # a generated placeholder would stand for an image that does not exist
            self.generation_config.suppress_tokens = [config.image_token_id]

    def sockets(self) -> dict[str, nn.Module]:
        """See `TesseraModel.sockets`; the output layer belongs to the language model."""
        whole = nn.ModuleDict({"model": self.model.language_model, HEAD: self.lm_head})
        return self.model.sockets() | {"language_model": whole}

    @property
    def tokens_per_image(self) -> int:
        """Placeholders that one image takes in the text."""
        return self.model.tokens_per_image

    @property
    def image_size(self) -> int:
        """Side of the images in pixels."""
        return self.model.image_size

    def get_input_embeddings(self) -> nn.Module:
        return self.model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def get_decoder(self) -> nn.Module:
        return self.model.language_model

    @property
    def reads_question(self) -> bool:
        """Whether the visual tokens depend on what is asked."""
        return self.model.reads_question

    def encode_images(self, pixel_values: Tensor, question: QuestionText | None = None) -> VisualTokens:
        """See `TesseraModel.encode_images`."""
        return self.model.encode_images(pixel_values, question)

    def require_images(self, input_ids: Tensor, images: int) -> None:
        """See `TesseraModel.require_images`."""
        self.model.require_images(input_ids, images)

    def get_image_features(self, pixel_values: Tensor, question: QuestionText | None = None) -> Tensor:
        """[M, 3, S, S] -> [M, n, E], see `TesseraModel.get_image_features`."""
        return self.model.get_image_features(pixel_values, question)

    def logits_of(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., E] -> logits [..., V], with the language model's own scaling and soft capping."""
        logits = self.get_output_embeddings()(hidden)
        text: Any = self.config.text_config
        scale = (getattr(text, "logit_scale", None) or 1.0) / (getattr(text, "logits_scaling", None) or 1.0)
        logits = logits if scale == 1.0 else logits * scale
        cap = getattr(text, "final_logit_softcapping", None)
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        inputs_embeds: Tensor | None = None,
        image_features: Tensor | None = None,
        visual_features: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> TesseraCausalLMOutput | tuple[Any, ...]:
        """Inputs as in `TesseraModel.forward`, and:

        labels [B, T] int64, not shifted, -100 ignored; loss_weights [B, T] float. loss = sum(w * l) / sum(w)
        in float32, or sum(w * l) / num_items_in_batch if that is given; in training the coupling's own loss is added to
        the mean. With labels, logits are returned only
        if `config.logits_with_loss`. logits_to_keep: 0 all positions, k > 0 the last k, or a tensor of
        positions.
        """
        if labels is not None:
            use_cache = False if use_cache is None else use_cache
            if self.reads_question:  # never the answer
                kwargs.setdefault("question_mask", labels == -100)
        outputs = self.model(
            input_ids=input_ids,
            pixel_values=pixel_values,
            attention_mask=attention_mask,
            position_ids=position_ids,
            segment_ids=segment_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            image_features=image_features,
            visual_features=visual_features,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        loss = sums = logits = None
        if labels is not None:
            sums = next_token_loss(hidden, labels, self.logits_of, loss_weights, segment_ids)
            if outputs.coupling_loss is not None:  # weighed like the batch that it is about, so that batches still add up
                sums = LossSums(sums.total + outputs.coupling_loss * sums.weight, sums.weight)
            loss = sums.mean() if num_items_in_batch is None else sums.total / num_items_in_batch
        if labels is None or self.config.logits_with_loss:
            keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else logits_to_keep
            logits = self.logits_of(hidden[:, keep] if isinstance(keep, (slice, Tensor)) else hidden)
        output = TesseraCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            loss_sum=sums.total if sums is not None else None,
            loss_weight=sums.weight if sums is not None else None,
            image_hidden_states=outputs.image_hidden_states,
        )
        return output if return_dict is not False else output.to_tuple()

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        """Transformers' own, less the images once the cache holds them."""
        inputs = super().prepare_inputs_for_generation(input_ids, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in _IMAGE_INPUTS:
                inputs.pop(name, None)
        return inputs

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **model_kwargs: Any,
    ) -> tuple[Tensor | None, dict[str, Any]]:
        # Rows are repeated one by one, so the images must be repeated row by row too, however many each row
        # has.
        images = {name: model_kwargs.pop(name) for name in _IMAGE_INPUTS if model_kwargs.get(name) is not None}
        if expand_size > 1 and images and input_ids is not None:
            counts = (input_ids == self.config.image_token_id).sum(1) // self.tokens_per_image
            for name, value in images.items():
                rows = value.split(counts.tolist())
                images[name] = torch.cat([row for row in rows for _ in range(expand_size)])
        input_ids, model_kwargs = super()._expand_inputs_for_generation(
            expand_size=expand_size,
            is_encoder_decoder=is_encoder_decoder,
            input_ids=input_ids,
            **model_kwargs,
        )
        return input_ids, model_kwargs | images
