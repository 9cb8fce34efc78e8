"""The composed model without its loss: encoders -> experts -> tokens -> connector -> coupling -> causal LM.

The parts are named in the configuration. Shapes: B rows, T tokens, M images in the whole batch (in the order
of their placeholders), n tokens per image, D visual channels, E language channels, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM
from transformers.modeling_outputs import BaseModelOutputWithPast

from tessera.errors import UserError
from tessera.models import parts as part_specs
from tessera.models.configuration import TesseraConfig
from tessera.models.vision import TesseraPreTrainedModel
from tessera.nn.segments import additive, segment_mask, segment_positions
from tessera.nn.tokens import VisualTokens, from_grid


@dataclass
class TesseraModelOutput(BaseModelOutputWithPast):
    """last_hidden_state [B, T, E]; image_hidden_states [M, n, E] or None."""

    image_hidden_states: Tensor | None = None


class TesseraModel(TesseraPreTrainedModel):
    """The composed model without the loss; `language_model` is a whole transformers causal LM."""

    config_class = TesseraConfig
    config: TesseraConfig

    def __init__(self, config: TesseraConfig) -> None:
        super().__init__(config)
        specs: Any = config.parts
        self.encoders = nn.ModuleList(
            part_specs.create("encoders", spec, f"parts.encoders.{i}", backend=config) for i, spec in enumerate(specs["encoders"])
        )
        widths, grids = [e.width for e in self.encoders], [e.grid for e in self.encoders]
        self.experts = part_specs.create("experts", specs["experts"], "parts.experts", widths=widths, grids=grids)
        self.tokens = part_specs.create(
            "tokens", specs["tokens"], "parts.tokens", width=self.experts.width, grid=self.experts.grid
        )
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        width = self.language_model.get_input_embeddings().embedding_dim
        self.connector = part_specs.create(
            "connectors", specs["connector"], "parts.connector", width=self.tokens.width, out_width=width
        )
        self.coupling = part_specs.create("couplings", specs["coupling"], "parts.coupling", width=width)
        self.image_size: int = max(int(e.image_size) for e in self.encoders)  # type: ignore[arg-type]
        target, parsed = part_specs.parse("tokens", specs["tokens"], "parts.tokens")
        rows, columns = self.experts.grid
        self.tokens_per_image = int(target.token_count(parsed, rows * columns))
        self.post_init()

    def sockets(self) -> dict[str, nn.Module]:
        """Socket name -> module, for freeze plans; encoders are `encoders.0`, `encoders.1`, ..."""
        found = {f"encoders.{i}": encoder for i, encoder in enumerate(self.encoders)}
        names = ("experts", "tokens", "connector", "coupling", "language_model")
        return found | {name: getattr(self, name) for name in names}

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def encode_images(self, pixel_values: Tensor) -> VisualTokens:
        """[M, 3, S, S] -> tokens in front of the connector, features [M, n, D]: what frozen towers can cache.

        Raises `UserError` for images of another shape.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise UserError(f"pixel_values must be [images, 3, height, width], not {list(pixel_values.shape)}.")
        sets = []
        for index, encoder in enumerate(self.encoders):
            pixels = pixel_values.to(next(encoder.parameters()).dtype)
            size = int(encoder.image_size)  # type: ignore[arg-type]
            if size != self.image_size and pixels.shape[-2:] == (self.image_size, self.image_size):
                pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
            sets.append(from_grid(encoder(pixels), encoder.grid, source=index))  # type: ignore[arg-type]
        return self.tokens(self.experts(sets))

    def project(self, features: Tensor) -> Tensor:
        """Features of `encode_images` [M, n, D] -> image features [M, n, E].

        Raises `UserError` where a token part has removed tokens: features alone do not say where they were.
        """
        if self.tokens.grid is None:
            raise UserError("these tokens are no full grid: give pixel_values or image_features instead.")
        return self.connector(from_grid(features, self.tokens.grid)).features

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """[M, 3, S, S] -> what the language model reads, [M, n, E].

        Raises `UserError` if n is not what the token part declares.
        """
        features = self.connector(self.encode_images(pixel_values)).features
        if features.shape[1] != self.tokens_per_image:
            raise UserError(
                f"the token part declares {self.tokens_per_image} tokens per image, but {features.shape[1]} "
                "came out: its token-count rule is wrong."
            )
        return features

    def embed(self, input_ids: Tensor, image_features: Tensor | None, check: bool = True) -> Tensor:
        """input_ids [B, T], image_features [M, n, E] or None -> embeddings [B, T, E], features in their places.

        Raises `UserError` for placeholders without images (unless `check` is off, as during generation).
        """
        placeholders = input_ids == self.config.image_token_id
        embeddings = self.get_input_embeddings()(input_ids)
        if image_features is not None:
            return self.coupling(embeddings, placeholders, image_features)
        if check and bool(placeholders.any()):
            raise UserError(
                f"the text holds {int(placeholders.sum())} image placeholder tokens, but no image was given: pass pixel_values."
            )
        return embeddings

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        segment_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        image_features: Tensor | None = None,
        visual_features: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> TesseraModelOutput | tuple[Any, ...]:
        """Runs the decoder.

        input_ids [B, T] with placeholders (or inputs_embeds [B, T, E] with the features already in place);
        pixel_values [M, 3, S, S], or visual_features [M, n, D] (`encode_images`), or image_features [M, n, E]
        (`get_image_features`); attention_mask [B, K] or a prepared 4-D mask; position_ids [B, T]; segment_ids
        [B, K] for packed rows, K = cached + T. mm_token_type_ids is accepted, as processors may send it, and
        not needed. Other keywords go to the language model. Raises `UserError` for inputs that contradict
        each other.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give exactly one of input_ids and inputs_embeds.")
        if sum(x is not None for x in (pixel_values, visual_features, image_features)) > 1:
            raise UserError("give only one of pixel_values, visual_features and image_features.")
        cached = past_key_values.get_seq_length() if past_key_values is not None else 0
        if pixel_values is not None:
            image_features = self.get_image_features(pixel_values)
        elif visual_features is not None:
            image_features = self.project(visual_features)
        if input_ids is not None:
            inputs_embeds = self.embed(input_ids, image_features, check=cached == 0)
        elif image_features is not None:
            raise UserError("images need input_ids, whose placeholders say where they go; inputs_embeds has none.")
        assert inputs_embeds is not None
        length = inputs_embeds.shape[1]
        if segment_ids is not None:
            if segment_ids.shape[1] != cached + length:
                raise UserError(
                    f"segment_ids cover {segment_ids.shape[1]} tokens, but there are {cached} cached and {length} new ones."
                )
            if position_ids is None:
                position_ids = segment_positions(segment_ids)[:, cached:]
            attention_mask = self._packed_mask(segment_ids, length, attention_mask, inputs_embeds)
        elif position_ids is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp_min(0)[:, -length:]
        outputs = self.language_model.base_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        output = TesseraModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
        )
        return output if return_dict is not False else output.to_tuple()

    def _packed_mask(self, segment_ids: Tensor, queries: int, attention_mask: Tensor | None, embeddings: Tensor) -> Tensor:
        kind = self.language_model.config._attn_implementation
        mask = segment_mask(segment_ids, queries, attention_mask)
        if kind == "eager":
            # Under autocast the scores are in its dtype, and a wider mask would widen them.
            device = embeddings.device.type
            autocast = torch.is_autocast_enabled(device)
            return additive(mask, torch.get_autocast_dtype(device) if autocast else embeddings.dtype)
        if kind == "sdpa":
            return mask
        raise UserError(f"packed rows need attn_implementation 'eager' or 'sdpa', not {kind!r}.")
