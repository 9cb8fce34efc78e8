"""RepQ-ViT quantises vision transformers to a few bits after training, by moving scales into the layers around.

Source: Li et al., "RepQ-ViT: Scale Reparameterization for Post-Training Quantization of Vision Transformers", 2022,
arXiv:2212.08254. Calibrates with accurate quantisers that no hardware likes and then rewrites them as simple ones. Behind a
LayerNorm every channel d has its own scale and zero point (s_d, z_d); with r = s_d / s and b = (z - z_d) s, s and z being the
means, the norm's weight becomes gamma / r, its bias beta / r - b, and the next linear layers W r and bias + W r b: then one
scale for all channels gives the very same codes. Attention probabilities get powers of sqrt 2, read as powers of 2 with a
scale that depends on whether the code is even or odd. Ranges by percentiles of least squared error, 32 images, no training.

Deviations: the mean zero point is rounded to a whole number; the released code keeps the fraction, and then not all codes are
the same. Which linear layers read what a norm gives is seen in one forward, not taken from names, so every norm whose output
nothing else reads is moved, that in front of a classifier too. As in the released code inputs of convolutions keep 8 bits.
Weights are stored as codes, two to a byte up to 4 bits; products are computed on what the codes stand for.

Shapes: B images, N tokens, D channels, H heads; quantisers see [B, N, D] and [B, H, N, N], weights are [out, in].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from tessera.config import config
from tessera.errors import UserError
from tessera.models.compression import Compressor, vision_of
from tessera.nn.quantise import PERCENTILES, Fit, Quantised, bounds, fitted, quantised
from tessera.nn.readers import Readers, norm_readers
from tessera.registry import part

M = TypeVar("M", bound=nn.Module)
CONVOLUTION_BITS = 8
ATTENTION = "tessera_quantised"
"""The name of our attention function in transformers' registry."""


def log_codes(x: Tensor, scale: Tensor) -> Tensor:
    """Codes of x >= 0 in powers of sqrt 2 below `scale`; whole numbers, infinite for 0."""
    return (-2 * (x / scale).log2()).round()


def log_values(codes: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Codes -> values by shifts alone: scale 2^-ceil(c / 2), the scale being sqrt 2 times larger for odd codes.

    Codes from 2^bits on stand for 0.
    """
    within = codes.clamp(0, 2**bits - 1)
    own = torch.where(within % 2 == 1, scale * math.sqrt(2.0), scale)
    return torch.ldexp(own, -(within / 2).ceil()).masked_fill(codes >= 2**bits, 0)


def reparameterise(norm: nn.LayerNorm, layers: list[nn.Linear], scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:
    """Moves the scales and zero points [D] of a norm's output into the norm and the layers that read it, in place.

    Returns the one scale and zero point that are left.
    """
    one, middle = scale.mean(), zero.mean().round()
    ratio, shift = scale / one, (middle - zero) * one
    norm.weight.data = norm.weight.data / ratio
    norm.bias.data = norm.bias.data / ratio - shift
    for layer in layers:
        layer.weight.data = layer.weight.data * ratio
        bias = layer.weight.data @ shift
        old: Tensor | None = layer.bias
        layer.bias = nn.Parameter(bias if old is None else old.data + bias, layer.weight.requires_grad)
    return one, middle


class AttentionScales(nn.Module):
    """Scales of an attention module's query, key, value and probabilities; each fits itself to the first it sees."""

    def __init__(self, bits: int, softmax: str, fit: Fit, like: Tensor) -> None:
        super().__init__()
        self.bits, self.softmax, self.fit = bits, softmax, fit
        self.fitting = True
        for name in ("query", "key", "value", "weights"):
            self.register_buffer(f"{name}_scale", torch.ones_like(like))
            self.register_buffer(f"{name}_zero", torch.zeros_like(like))

    def plain(self, name: str, x: Tensor) -> Tensor:
        """The numbers with one scale for all of them."""
        scale, zero = getattr(self, f"{name}_scale"), getattr(self, f"{name}_zero")
        if self.fitting:
            found = self.fit(x.reshape(1, -1).to(scale.dtype), self.bits)
            scale.copy_(found[0][0])
            zero.copy_(found[1][0])
        return quantised(x, scale.to(x.dtype), zero.to(x.dtype), self.bits)

    def probabilities(self, x: Tensor) -> Tensor:
        """Attention probabilities [B, H, N, N]."""
        if self.softmax == "uniform":
            return self.plain("weights", x)
        scale = self.get_buffer("weights_scale")
        if self.fitting:
            tries = [s[0] for s in bounds(x.reshape(1, -1).to(scale.dtype), PERCENTILES)]
            errors = torch.stack([(self._powers(x, s.to(x.dtype)) - x).square().mean() for s in tries])
            scale.copy_(tries[int(errors.argmin())])
        return self._powers(x, scale.to(x.dtype))

    def _powers(self, x: Tensor, scale: Tensor) -> Tensor:
        if self.softmax == "log2":
            return log_values(-2 * (x / scale).log2().round(), scale, self.bits + 1)
        return log_values(log_codes(x, scale), scale, self.bits)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention with quantised factors: query [B, H, N, E], key and value [B, G, N, E] -> [B, N, H, E], weights [B, H, N, N]."""
    scales = module.tessera_scales
    assert isinstance(scales, AttentionScales)
    query, key, value = (scales.plain(name, x) for name, x in (("query", query), ("key", key), ("value", value)))
    if key.shape[1] != query.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // key.shape[1], 1) for x in (key, value))
    scores = (query @ key.mT) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        mask = attention_mask[..., : key.shape[2]]
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min) if mask.dtype == torch.bool else scores + mask
    elif getattr(module, "is_causal", False) and query.shape[2] > 1:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1 + key.shape[2] - query.shape[2])
        scores = scores.masked_fill(later, torch.finfo(scores.dtype).min)
    weights = scores.float().softmax(-1).to(query.dtype)
    return (scales.probabilities(weights) @ value).transpose(1, 2).contiguous(), weights


@part("repq_vit", socket="compression", catalog=418)
class RepQViT(Compressor):
    """A tower with quantised weights and activations."""

    @config
    class Config:
        """weight_bits, activation_bits: 2 to 8, both None leaves the model as it is.
        norms: behind norms one scale after reparameterisation, one per channel, or one without it.
        softmax: powers of sqrt 2, powers of 2, or even steps.
        ranges: the percentiles of least error, or everything from the least to the greatest number.
        within: dotted name of the module to quantise; empty: the vision tower, or all of a model that is one."""

        weight_bits: int | None = 4
        activation_bits: int | None = 4
        norms: Literal["reparameterised", "channel", "layer"] = "reparameterised"
        softmax: Literal["log_sqrt2", "log2", "uniform"] = "log_sqrt2"
        ranges: Literal["search", "minmax"] = "search"
        within: str = ""

        def validate_bits(self) -> None:
            bits = (self.weight_bits, self.activation_bits)
            if bits != (None, None) and not all(b is not None and 2 <= b <= 8 for b in bits):
                raise ValueError(f"weight_bits and activation_bits are 2 to 8, or both None, not {bits[0]} and {bits[1]}.")

    def __init__(self, config: Config) -> None:
        self.config = config

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Nothing is quantised."""
        return {"weight_bits": None, "activation_bits": None}

    @torch.no_grad()
    def compress(self, model: M, inputs: Mapping[str, Any]) -> M:
        """A quantised copy of `model` in evaluation mode, calibrated on one batch of its keyword arguments (about 32 images).

        Layers that the batch does not reach stay as they are. Raises `UserError` if it reaches none.
        """
        made = copy.deepcopy(model).eval()
        wanted, given = self.config.weight_bits, self.config.activation_bits
        if wanted is None or given is None:
            return made
        try:
            room = made.get_submodule(self.config.within) if self.config.within else vision_of(made)
        except AttributeError as error:
            raise UserError(f"repq_vit: {type(model).__name__} has no module {self.config.within!r}.") from error
        layers = {m: name for name, m in made.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)}
        inside = {m for m in room.modules() if m in layers}
        norms = [m for m in room.modules() if isinstance(m, nn.LayerNorm) and m.elementwise_affine and m.bias is not None]
        readers = norm_readers(made, norms, inside, inputs) if self.config.norms != "layer" else {}
        seen = self._calibrated(made, room, inside, readers, inputs, wanted, given)
        if not seen:
            raise UserError(f"repq_vit: no linear layer or convolution of {type(room).__name__} took part in the batch.")
        if self.config.norms == "reparameterised":
            for norm, reading in readers.items():
                one = reparameterise(norm, reading, *seen[reading[0]])
                seen.update(dict.fromkeys(reading, one))
        for layer, scales in seen.items():
            bits = CONVOLUTION_BITS if isinstance(layer, nn.Conv2d) else given
            made.set_submodule(layers[layer], Quantised(layer, wanted, bits, scales, self._fit))
        return made

    def _fit(self, x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
        return fitted(x, bits, PERCENTILES if self.config.ranges == "search" else (1.0,))

    def _calibrated(
        self,
        model: nn.Module,
        room: nn.Module,
        layers: set[Any],
        readers: Readers,
        inputs: Mapping[str, Any],
        wanted: int,
        given: int,
    ) -> dict[Any, tuple[Tensor, Tensor]]:
        """Scale and zero point of each layer's input, found in a forward in which everything in front is quantised too."""
        by_channel = {layer for reading in readers.values() for layer in reading}
        found: dict[Any, tuple[Tensor, Tensor]] = {}
        weights = {layer: layer.weight.data for layer in layers}

        def hook(layer: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x, bits = args[0], CONVOLUTION_BITS if isinstance(layer, nn.Conv2d) else given
            if layer not in found:
                rows = x.reshape(-1, x.shape[-1]).t() if layer in by_channel else x.reshape(1, -1)
                scale, zero = self._fit(rows.to(layer.weight.dtype), bits)
                found[layer] = (scale, zero) if layer in by_channel else (scale[0], zero[0])
            scale, zero = found[layer]
            return (quantised(x, scale.to(x.dtype), zero.to(x.dtype), bits), *args[1:])

        hooks = [layer.register_forward_pre_hook(hook) for layer in layers]
        attentions = quantise_attention(room, given, self.config.softmax, self._fit)
        try:
            for layer, weight in weights.items():
                scale, zero = self._fit(weight.flatten(1), wanted)
                layer.weight.data = quantised(weight.flatten(1), scale[:, None], zero[:, None], wanted).view(weight.shape)
            model(**inputs)
        finally:
            for handle in hooks:
                handle.remove()
            for layer, weight in weights.items():
                layer.weight.data = weight
            for scales in attentions:
                scales.fitting = False
        return found


def quantise_attention(room: nn.Module, bits: int, softmax: str, fit: Fit) -> list[AttentionScales]:
    """Gives the attention modules below `room` that go through transformers' registry quantised products of their own."""
    from transformers import PreTrainedModel
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    found = []
    for module in list(room.modules()):
        known: Any = getattr(module, "config", None)
        plain = isinstance(module, PreTrainedModel) or not (hasattr(module, "scaling") or hasattr(module, "scale"))
        if plain or not hasattr(known, "_attn_implementation_internal"):
            continue
        ALL_ATTENTION_FUNCTIONS[ATTENTION] = attend
        own: Any = copy.copy(known)
        own._attn_implementation_internal = ATTENTION
        module.config = own
        module.tessera_scales = AttentionScales(bits, softmax, fit, next(module.parameters()).new_ones(()))
        found.append(module.tessera_scales)
    return found
