"""Configurations of Tessera's models: transformers configurations that refuse what they do not know."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import field
from typing import Any, ClassVar

import transformers
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tessera.errors import UserError, unknown
from tessera.models import parts as part_specs

# What transformers itself passes or saves beside declared fields.
_OF_TRANSFORMERS = frozenset(
    {
        "model_type", "auto_map", "torch_dtype", "num_labels", "name_or_path", "output_attentions",
        "attn_implementation", "experts_implementation", "quantization_config", "per_layer_config",
        "tie_word_embeddings", "use_cache",
    }
)  # fmt: skip


def _fields(cls: type) -> list[str]:
    return [f.name for f in dataclasses.fields(cls)]


class StrictConfig(PreTrainedConfig):
    """A transformers configuration that checks its own fields: unknown keys and wrong types raise `UserError`."""

    def __post_init__(self, **kwargs: Any) -> None:
        known = _fields(type(self))
        generation = GenerationConfig().to_dict()
        for key in kwargs:
            if not (key.startswith("_") or key in known or key in _OF_TRANSFORMERS or key in generation):
                own = [name for name in known if name not in _fields(PreTrainedConfig)]
                raise unknown(f"key in {type(self).__name__}:", key, [*own, "num_labels"])
        super().__post_init__(**kwargs)

    def _expect(self, name: str, kinds: type | tuple[type, ...], what: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise UserError(f"{type(self).__name__}.{name} must be {what}, not {value!r}.")


def text_configuration(value: Any, where: str, default: str = "llama", foreign: bool = False) -> PreTrainedConfig:
    """A causal language model's configuration from a dictionary with `model_type`.

    Raises `UserError` for wrong types, and for unknown keys unless they are `foreign`.
    """
    if isinstance(value, PreTrainedConfig):
        return value
    if value is None:
        return CONFIG_MAPPING[default]()
    if not isinstance(value, Mapping):
        raise UserError(f"{where} must be a transformers configuration or a dictionary with a model_type, not {value!r}.")
    values = dict(value)
    kind = values.pop("model_type", default)
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise unknown(f"{where}.model_type:", str(kind), CONFIG_MAPPING.keys())
    try:
        built = CONFIG_MAPPING[kind](**values)
    except Exception as error:  # strict dataclasses of transformers raise their own validation errors
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error
    if foreign:
        return built
    # transformers accepts unknown keys silently; a key that the class neither declares nor used is a slip of
    # the pen.
    plain = CONFIG_MAPPING[kind]().to_dict()
    for key in values:
        if key not in plain and not key.startswith("_") and key not in _OF_TRANSFORMERS and key not in _LEGACY_TEXT:
            raise unknown(f"key in {where} ({kind}):", key, plain)
    return built


ACTIVATIONS = ("gelu", "gelu_tanh", "quick_gelu")
"""Of a dual encoder's text tower; quick_gelu, x sigmoid(1.702 x), is what OpenAI's CLIP was trained with."""

_LEGACY_TEXT = frozenset({"rope_theta", "rope_scaling", *GenerationConfig().to_dict()})


class TesseraConfig(StrictConfig):
    """Tessera's composed vision-language model.

    parts              sockets and their parts, see `tessera.models.parts`; defaults are written out
    text_config        configuration of a transformers causal language model, with `model_type`
    image_token_id     id of the placeholder that image features replace
    initializer_range  standard deviation for layers that no part initialises
    logits_with_loss   whether a forward with labels also returns logits (other trainers want them; it costs
                       time and memory)

    Raises `UserError` for unknown keys and wrong types, here, in a part, or in `text_config`.
    """

    model_type: ClassVar[str] = "tessera_vlm"
    sub_configs: ClassVar[dict[str, Any]] = {"text_config": AutoConfig}

    parts: dict[str, Any] | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    image_token_id: int = 4
    initializer_range: float = 0.02
    logits_with_loss: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        self._expect("image_token_id", int, "a token id")
        self._expect("initializer_range", (float, int), "a number")
        self._expect("logits_with_loss", bool, "true or false")
        self.parts = part_specs.normalise({} if self.parts is None else self.parts)
        kwargs.pop("tie_word_embeddings", None)  # the language model's configuration says it
        # Another version of transformers may have saved keys of its own.
        foreign = self.transformers_version not in (None, transformers.__version__)
        self.text_config = text_configuration(self.text_config, "text_config", foreign=foreign)
        super().__post_init__(**kwargs)
        vocabulary = getattr(self.text_config, "vocab_size", None)
        if vocabulary is not None and not 0 <= self.image_token_id < vocabulary:
            raise UserError(f"image_token_id {self.image_token_id} is outside the vocabulary of {vocabulary} tokens.")

    @property
    def tie_word_embeddings(self) -> bool:
        """Whether the output layer is the embeddings: what the language model's configuration says."""
        return bool(getattr(self.text_config, "tie_word_embeddings", False))

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, value: bool) -> None:
        self.text_config.tie_word_embeddings = value  # type: ignore[union-attr]


class TesseraVisionConfig(StrictConfig):
    """One encoder part by itself, with an optional per-patch classification head.

    encoder            a part of socket `encoders`: {"kind": "conv_vit", ...}
    num_labels         classes of the per-patch head, 0 for none (id2label names them)
    attributes         what else is told of every patch, beside its class: {"tint": ["none", "red", ...], ...}; by name in
                       alphabetical order, as configurations are saved
    initializer_range  standard deviation for layers that no part initialises
    """

    model_type: ClassVar[str] = "tessera_vision"

    encoder: dict[str, Any] | None = None
    attributes: dict[str, list[str]] = field(default_factory=dict)
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        self._expect("initializer_range", (float, int), "a number")
        self._expect("attributes", dict, "a dictionary of lists of names")
        given: dict[str, Any] = dict(sorted(self.attributes.items()))
        self.attributes = given
        for name, values in given.items():
            if not isinstance(values, (list, tuple)) or len(values) < 2 or not all(isinstance(v, str) for v in values):
                raise UserError(f"{type(self).__name__}.attributes[{name!r}] must be two or more names, not {values!r}.")
        spec = {"kind": "conv_vit"} if self.encoder is None else self.encoder
        self.encoder = part_specs.normalise_one("encoders", spec, "encoder")
        if self.id2label is None and kwargs.get("num_labels") is None:
            kwargs["num_labels"] = 0
        super().__post_init__(**kwargs)

    @property
    def image_size(self) -> int | None:
        """Side of the input image in pixels, where the encoder's configuration has it."""
        assert self.encoder is not None
        size = self.encoder.get("image_size", self.encoder.get("tower", {}).get("image_size"))
        return size if isinstance(size, int) else None


class TesseraDualEncoderConfig(StrictConfig):
    """A dual encoder: an image tower and a text transformer that meet in one space of `projection_dim`
    channels.

    encoder            a part of socket `encoders`
    contrastive        a part of socket `contrastive`: how embeddings are made and compared, and the loss
    projection_dim     E, width of the shared space
    pool_heads         heads of a contrastive part that pools the image tower's tokens by attention
    vocab_size, text_width, text_depth, text_heads, max_position_embeddings   the text transformer
    text_causal        whether a text token sees the earlier ones only
    text_activation    of the text transformer's MLPs: "gelu", "gelu_tanh" or "quick_gelu"
    pad_token_id       id of text tokens that are padding
    temperature        initial temperature of the logits (learned)
    """

    model_type: ClassVar[str] = "tessera_dual_encoder"

    encoder: dict[str, Any] | None = None
    contrastive: dict[str, Any] | None = None
    projection_dim: int = 256
    pool_heads: int = 4
    vocab_size: int = 4096
    text_width: int = 192
    text_depth: int = 4
    text_heads: int = 3
    max_position_embeddings: int = 64
    text_causal: bool = False
    text_activation: str = "gelu_tanh"
    pad_token_id: int = 0
    temperature: float = 0.07
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        for name in ("projection_dim", "pool_heads", "vocab_size", "text_width", "text_depth", "text_heads"):
            self._expect(name, int, "a whole number")
            if getattr(self, name) < 1:
                raise UserError(f"{type(self).__name__}.{name} must be at least 1, not {getattr(self, name)}.")
        self._expect("max_position_embeddings", int, "a whole number")
        self._expect("pad_token_id", int, "a token id")
        self._expect("temperature", (float, int), "a number")
        self._expect("text_causal", bool, "true or false")
        if self.text_activation not in ACTIVATIONS:
            raise unknown("text_activation", str(self.text_activation), ACTIVATIONS)
        self._expect("initializer_range", (float, int), "a number")
        if self.text_width % self.text_heads:
            raise UserError(f"text_width {self.text_width} cannot be divided among {self.text_heads} heads.")
        spec = {"kind": "conv_vit"} if self.encoder is None else self.encoder
        self.encoder = part_specs.normalise_one("encoders", spec, "encoder")
        contrastive = {"kind": "clip"} if self.contrastive is None else self.contrastive
        self.contrastive = part_specs.normalise_one("contrastive", contrastive, "contrastive")
        super().__post_init__(**kwargs)
