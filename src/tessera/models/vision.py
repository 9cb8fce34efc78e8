"""One encoder part as an ordinary transformers model: the vision experts by themselves.

Shapes: B images, N patches in reading order, D channels, C classes, A attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from tessera.errors import UserError
from tessera.models import parts as part_specs
from tessera.models.configuration import TesseraVisionConfig
from tessera.nn import initialise
from tessera.nn.loss import LossSums

ATTRIBUTE_SHARE = 0.3
"""What the loss of one attribute of a patch weighs beside the loss of its class."""


@dataclass
class VisionOutput(ModelOutput):
    """What a forward returns.

    loss = loss_sum / loss_weight, scalars or None; logits [B, N, C] or None; attributes one [B, N, values] each or None;
    last_hidden_state [B, N, D].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    last_hidden_state: Tensor | None = None
    attributes: tuple[Tensor, ...] | None = None
    loss_sum: Tensor | None = None
    loss_weight: Tensor | None = None


class TesseraPreTrainedModel(PreTrainedModel):
    """What all of Tessera's models share: attention by registry, initialisation declared by the parts."""

    base_model_prefix = "model"
    input_modalities: ClassVar[Any] = ("image", "text")
    supports_gradient_checkpointing = False
    _supports_sdpa = True
    _supports_attention_backend = True
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _no_split_modules: ClassVar[list[str]] = []

    def _init_weights(self, module: nn.Module) -> None:
        # Children come before their parents here, so a part's own rules have the last word over the plain
        # ones.
        if isinstance(module, initialise.OwnWeights) and not isinstance(module, PreTrainedModel):
            module.init_weights()
        else:
            super()._init_weights(module)


class TesseraVisionModel(TesseraPreTrainedModel):
    """An encoder with an optional per-patch head, and one for attributes of what the patch shows."""

    config_class = TesseraVisionConfig
    config: TesseraVisionConfig
    main_input_name = "pixel_values"
    input_modalities: ClassVar[Any] = ("image",)

    def __init__(self, config: TesseraVisionConfig) -> None:
        super().__init__(config)
        self.encoder = part_specs.create("encoders", config.encoder, "encoder", backend=config)
        labels = config.num_labels or 0
        self.head = PatchHead(self.encoder.width, labels) if labels else None
        sizes = [len(values) for values in config.attributes.values()]
        self.attributes = AttributeHeads(self.encoder.width, sizes) if sizes else None
        self.post_init()

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the patches."""
        return self.encoder.grid

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        attribute_labels: Tensor | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> VisionOutput | tuple[Tensor, ...]:
        """pixel_values [B, 3, S, S], labels [B, N] int64 with -100 ignored, loss_weights [B, N], attribute_labels [B, N, A]
        int64 in the order of the configuration's `attributes`, -100 ignored -> `VisionOutput`.

        The loss is the cross-entropy over labelled patches, sum(w * l) / sum(w), to whose numerator every labelled attribute
        adds `ATTRIBUTE_SHARE` times its own. Raises `UserError` for labels without a head.
        """
        features = self.encoder(pixel_values)
        logits = self.head(features) if self.head is not None else None
        attributes = self.attributes(features) if self.attributes is not None else None
        output = VisionOutput(logits=logits, attributes=attributes, last_hidden_state=features)
        if labels is not None:
            if logits is None:
                raise UserError("labels were given, but this model has no head: set num_labels in its configuration.")
            keep = labels != -100
            each = F.cross_entropy(logits[keep].float(), labels[keep], reduction="none")
            weight = torch.ones_like(each) if loss_weights is None else loss_weights[keep].to(each.dtype)
            total = (each * weight).sum()
            if attribute_labels is not None:
                if attributes is None or attribute_labels.shape[-1] != len(attributes):
                    raise UserError(
                        f"labels of {attribute_labels.shape[-1]} attributes were given, but this model has "
                        f"{len(attributes or ())}: name them under attributes in its configuration."
                    )
                total = total + ATTRIBUTE_SHARE * _attribute_loss(attributes, attribute_labels)
            sums = LossSums(total, weight.sum())
            output.loss, output.loss_sum, output.loss_weight = sums.mean(), sums.total, sums.weight
        return output if return_dict is not False else output.to_tuple()


def _attribute_loss(attributes: tuple[Tensor, ...], labels: Tensor) -> Tensor:
    each = [
        F.cross_entropy(logits.flatten(0, 1).float(), labels[..., i].flatten(), ignore_index=-100, reduction="sum")
        for i, logits in enumerate(attributes)
    ]
    return torch.stack(each).sum()


class AttributeHeads(nn.Module):
    """[B, N, D] -> for each attribute [B, N, values]."""

    def __init__(self, width: int, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes
        self.classifier = PatchHead(width, sum(sizes))

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        logits: Tensor = self.classifier(features)
        return logits.split(self.sizes, -1)


class PatchHead(nn.Linear):
    """[B, N, D] -> [B, N, C]."""

    def __init__(self, width: int, labels: int) -> None:
        super().__init__(width, labels)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02, zero bias."""
        initialise.linear(self)
