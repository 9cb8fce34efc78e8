"""The composed model without its loss: encoders -> experts -> tokens -> connector -> coupling -> causal LM.

The parts are named in the configuration; how much stands in front of a coupling depends on it (`tessera.models.coupling`).

Shapes: B rows, T tokens, M images in the whole batch (in the order of their placeholders), n tokens per image, D visual
channels, E language channels, V vocabulary.
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
from tessera.models.contracts import Experts
from tessera.models.coupling import MEMORY, Coupling, Pass, require
from tessera.models.names import HEAD, OUTER, ComposedPreTrainedModel
from tessera.nn.segments import additive, segment_mask, segment_positions
from tessera.nn.tokens import QuestionText, VisualTokens, from_grid


@dataclass
class TesseraModelOutput(BaseModelOutputWithPast):
    """last_hidden_state [B, T, E]; image_hidden_states [M, n, E] or None; coupling_loss: the coupling's own, a scalar or None."""

    image_hidden_states: Tensor | None = None
    coupling_loss: Tensor | None = None


class TesseraModel(ComposedPreTrainedModel):
    """The composed model without output layer and loss; `language_model` is a transformers language model without a head."""

    config_class = TesseraConfig
    config: TesseraConfig
    encoders: Any
    experts: Any
    tokens: Any
    connector: Any

    def __init__(self, config: TesseraConfig, heads: list[nn.Module] | None = None) -> None:
        """heads: gets the output layer that the language model was built with, which this model does not keep."""
        super().__init__(config)
        specs: Any = config.parts
        self.encoders = nn.ModuleList(
            part_specs.create("encoders", spec, f"parts.encoders.{i}", backend=config) for i, spec in enumerate(specs["encoders"])
        )
        self.pixels: Any = part_specs.create("pixels", specs["pixels"], "parts.pixels") if "pixels" in specs else None
        self.reads_levels = False
        for name in ("experts", "tokens", "connector"):  # so they stay where the coupling sees what would stand in front of them
            setattr(self, name, None)
        behind_connector = part_specs.sees(specs["coupling"], "parts.coupling") == "tokens"
        if behind_connector:
            self._build_vision(specs)
        self.language_model, head, self.tied_names = _language_model(config)
        if heads is not None:
            heads.append(head)
        width = self.language_model.get_input_embeddings().embedding_dim
        if behind_connector:
            self.connector = part_specs.create(
                "connectors", specs["connector"], "parts.connector", width=self.tokens.width, out_width=width
            )
        self.reads_question = behind_connector and (self.experts.reads_question or self.connector.reads_question)
        self.coupling: Coupling = part_specs.create(
            "couplings",
            specs["coupling"],
            "parts.coupling",
            width=width,
            language_model=self.language_model,
            encoders=list(self.encoders),
            backend=config,
        )
        sizes = [self._side(e) for e in self.encoders]
        self.image_size: int = max(sizes) if sizes else self.coupling.image_size
        self.features_per_image: int = self._count(specs) if behind_connector else self.coupling.count
        self.tokens_per_image: int = self.coupling.placeholders(self.features_per_image)
        self.post_init()

    def _build_vision(self, specs: Any) -> None:
        widths, grids = [e.width for e in self.encoders], [e.grid for e in self.encoders]
        if self.pixels is not None:
            widths = [self.pixels.width(width) for width in widths]
        kind: type[Experts] = part_specs.parse("experts", specs["experts"], "parts.experts")[0]
        self.reads_levels = kind.reads_levels
        more: dict[str, Any] = {}
        if self.reads_levels:
            more["levels"] = part_specs.levels(list(self.encoders), specs["experts"]["kind"])
        if kind.reads_question:
            more["text_width"] = self.config.text_config.hidden_size  # type: ignore[union-attr]
        self.experts = part_specs.create("experts", specs["experts"], "parts.experts", widths=widths, grids=grids, **more)
        self.tokens = part_specs.create(
            "tokens", specs["tokens"], "parts.tokens", width=self.experts.width, grid=self.experts.grid
        )

    def _count(self, specs: Any) -> int:
        """Features per image behind the connector, as the parts declare it."""
        rows, columns = self.experts.grid
        count = int(rows * columns)
        for socket, key in (("tokens", "tokens"), ("connectors", "connector")):
            target, parsed = part_specs.parse(socket, specs[key], f"parts.{key}")
            count = int(target.token_count(parsed, count))
        return count

    def sockets(self) -> dict[str, nn.Module]:
        """Socket name -> module, for freeze plans; encoders are `encoders.0`, `encoders.1`, ..."""
        found = {f"encoders.{i}": encoder for i, encoder in enumerate(self.encoders)}
        found |= {name: part for name in ("experts", "tokens", "connector") if (part := getattr(self, name)) is not None}
        return found | self.coupling.sockets() | {"language_model": self.language_model}

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def encode_images(self, pixel_values: Tensor, question: QuestionText | None = None) -> VisualTokens:
        """[M, 3, S, S] -> tokens in front of the connector, features [M, n, D]: what frozen towers can cache.

        question: what is asked about each image, for parts that read it. Raises `UserError` for images of another shape.
        """
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise UserError(f"pixel_values must be [images, 3, height, width], not {list(pixel_values.shape)}.")
        if self.coupling.sees != "tokens":
            return self.coupling.encode(pixel_values, list(self.encoders))
        sets = []
        for index, encoder in enumerate(self.encoders):
            pixels = pixel_values.to(next(encoder.parameters()).dtype)
            size = self._side(encoder)
            if size != self.image_size and pixels.shape[-2:] == (self.image_size, self.image_size):
                pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True)
            layers = self._layers(encoder, pixels)
            tokens = from_grid(layers[-1], encoder.grid, source=index)
            tokens.levels = layers if self.reads_levels else None
            sets.append(tokens)
        return self.tokens(self.experts(sets, question) if self.experts.reads_question else self.experts(sets))

    def _side(self, encoder: Any) -> int:
        """Side of the images that an encoder, or the pixels part in front of it, wants."""
        size = int(encoder.image_size)
        return size if self.pixels is None else int(self.pixels.image_size(size))

    def _layers(self, encoder: Any, pixels: Tensor) -> tuple[Tensor, ...]:
        """[M, 3, S, S] -> the layers [M, n, D] of an encoder that the experts read, the last one last."""

        def encode(views: Tensor) -> tuple[Tensor, ...]:
            return tuple(encoder.levels(views)) if self.reads_levels else (encoder(views),)

        return encode(pixels) if self.pixels is None else self.pixels(encode, pixels, int(encoder.image_size), encoder.grid)

    def project(self, features: Tensor, question: QuestionText | None = None) -> Tensor:
        """Features of `encode_images` [M, n, D] -> image features [M, n', E]; `question` for a connector that reads it.

        Raises `UserError` where a token part has removed tokens: features alone do not say where they were.
        """
        if self.connector is None:
            return self.coupling.receive(features)
        if self.tokens.grid is None:
            raise UserError("these tokens are no full grid: give pixel_values or image_features instead.")
        return self.coupling.receive(self._connect(from_grid(features, self.tokens.grid), question))

    def _connect(self, tokens: VisualTokens, question: QuestionText | None) -> Tensor:
        if self.connector is None:
            return tokens.features
        return (self.connector(tokens, question) if self.connector.reads_question else self.connector(tokens)).features

    def get_image_features(self, pixel_values: Tensor, question: QuestionText | None = None) -> Tensor:
        """[M, 3, S, S] -> what the language model reads, [M, n, E]; `question` as in `encode_images`.

        Raises `UserError` if the number is not what the parts declare.
        """
        tokens = self.encode_images(pixel_values, question)
        features = self._connect(tokens, question)
        if features.shape[1] != self.features_per_image:
            raise UserError(
                f"the parts declare {self.features_per_image} tokens per image, but {features.shape[1]} "
                "came out: a token-count rule is wrong."
            )
        return self.coupling.receive(features)

    def question(self, input_ids: Tensor, asked: Tensor | None = None) -> QuestionText:
        """What each image is asked: all text of its row, input_ids [B, T], or what of it is `asked` [B, T] bool."""
        placeholders = input_ids == self.config.image_token_id
        asked = ~placeholders if asked is None else asked.bool() & ~placeholders
        images = placeholders.sum(1) // self.tokens_per_image
        embeddings = self.get_input_embeddings()(input_ids)
        return QuestionText(embeddings=embeddings.repeat_interleave(images, 0), mask=asked.repeat_interleave(images, 0))

    def require_images(self, input_ids: Tensor, images: int) -> None:
        """Raises `UserError` unless input_ids [B, T] hold the placeholders of as many images: in words, which a compiled forward,
        where this is an assertion, has not."""
        require(input_ids == self.config.image_token_id, images, self.tokens_per_image)

    def embed(self, input_ids: Tensor, image_features: Tensor | None, check: bool = True) -> Tensor:
        """input_ids [B, T], image_features [M, n, E] or None -> embeddings [B, T, E], features in their places.

        Raises `UserError` for placeholders without images (unless `check` is off, as during generation).
        """
        placeholders = input_ids == self.config.image_token_id
        embeddings = self.get_input_embeddings()(input_ids)
        if image_features is not None:
            return self.coupling(embeddings, placeholders, image_features)
        if check:
            require(placeholders, 0, self.tokens_per_image)
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
        question_mask: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> TesseraModelOutput | tuple[Any, ...]:
        """Runs the decoder.

        input_ids [B, T] with placeholders (or inputs_embeds [B, T, E] with the features already in place);
        pixel_values [M, 3, S, S], or visual_features [M, n, D] (`encode_images`), or image_features [M, n, E]
        (`get_image_features`); attention_mask [B, K] or a prepared 4-D mask; position_ids [B, T]; segment_ids
        [B, K] for packed rows, K = cached + T. question_mask [B, T] bool: which text parts that read the question may
        read, by default all that is no padding. mm_token_type_ids is accepted, as processors may send it, and
        not needed. Other keywords go to the language model. Raises `UserError` for inputs that contradict
        each other.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UserError("give exactly one of input_ids and inputs_embeds.")
        if sum(x is not None for x in (pixel_values, visual_features, image_features)) > 1:
            raise UserError("give only one of pixel_values, visual_features and image_features.")
        cached = past_key_values.get_seq_length() if past_key_values is not None else 0
        if pixel_values is not None or visual_features is not None:
            question = self._asked(input_ids, question_mask, attention_mask, segment_ids)
            if pixel_values is not None:
                image_features = self.get_image_features(pixel_values, question)
            elif visual_features is not None:
                image_features = self.project(visual_features, question)
        placeholders = None
        if input_ids is not None:
            placeholders = input_ids == self.config.image_token_id
            inputs_embeds = self.embed(input_ids, image_features, check=cached == 0)
        elif image_features is not None:
            raise UserError("images need input_ids, whose placeholders say where they go; inputs_embeds has none.")
        assert inputs_embeds is not None
        length = inputs_embeds.shape[1]
        padding = attention_mask if attention_mask is not None and attention_mask.ndim == 2 else None
        if segment_ids is not None:
            if segment_ids.shape[1] != cached + length:
                raise UserError(
                    f"segment_ids cover {segment_ids.shape[1]} tokens, but there are {cached} cached and {length} new ones."
                )
            if position_ids is None:
                position_ids = segment_positions(segment_ids)[:, cached:]
            attention_mask = self._packed_mask(segment_ids, length, attention_mask, inputs_embeds)
        else:
            if position_ids is None and padding is not None:
                position_ids = (padding.long().cumsum(-1) - 1).clamp_min(0)[:, -length:]
            if self.coupling.masks and (attention_mask is None or padding is not None):
                one = torch.zeros(inputs_embeds.shape[0], cached + length, dtype=torch.int64, device=inputs_embeds.device)
                attention_mask = self._packed_mask(one, length, padding, inputs_embeds)
        now = Pass(
            placeholders=torch.zeros_like(inputs_embeds[..., 0], dtype=torch.bool) if placeholders is None else placeholders,
            features=image_features,
            pixels=pixel_values,
            segments=segment_ids,
            real=padding,
            cached=cached,
            memory=getattr(past_key_values, MEMORY, None),
        )
        with self.coupling.during(now):
            outputs = self.language_model(
                inputs_embeds=inputs_embeds,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        if now.memory is not None and outputs.past_key_values is not None:
            setattr(outputs.past_key_values, MEMORY, now.memory)
        output = TesseraModelOutput(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_features,
            coupling_loss=self.coupling.loss(now, outputs.last_hidden_state) if self.training else None,
        )
        return output if return_dict is not False else output.to_tuple()

    def _asked(
        self, ids: Tensor | None, asked: Tensor | None, attention_mask: Tensor | None, segments: Tensor | None
    ) -> QuestionText | None:
        if not self.reads_question or ids is None:
            return None
        if self.connector.reads_question and segments is not None and int(segments.max()) > 1:
            raise UserError(
                "the connector reads the question, so a packed row can hold only one: train with questions.most=1, without "
                "captions and lists."
            )
        real = attention_mask if attention_mask is not None and attention_mask.shape == ids.shape else None
        real = segments != -1 if segments is not None and segments.shape == ids.shape else real
        if real is not None:
            asked = real.bool() if asked is None else asked.bool() & real.bool()
        return self.question(ids, asked)

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


def _language_model(config: TesseraConfig) -> tuple[Any, nn.Module, dict[str, str]]:
    """The language model of a configuration, taken apart: (without its head, its head, how the two can be tied).

    Both are built by the causal class, so they begin with its weights. The last: name of the head's weight -> name of the
    embeddings' in the full model, empty for a class that never ties them. Raises `UserError` for a class without a head.
    """
    causal: Any = AutoModelForCausalLM.from_config(config.text_config)
    base, head = causal.base_model, causal.get_output_embeddings()
    if base is causal or not isinstance(head, nn.Module):
        raise UserError(f"text_config: {type(causal).__name__} is no language model with an output layer of its own.")
    if not causal._tied_weights_keys:
        return base, head, {}
    embeddings = base.get_input_embeddings()
    name = next(name for name, module in base.named_modules() if module is embeddings)
    return base, head, {f"{HEAD}.weight": f"model.{OUTER}.{name}.weight"}
