"""Any vision tower of the transformers library as an encoder: CLIP, SigLIP, DINOv2, ViT ...

The tower is described by its transformers configuration dictionary (with `model_type`) and built without
weights; load them with the full model, or copy them in. `layer` counts as in LLaVA: -1 is the last layer's
output before any final norm that the tower keeps out of its hidden states, -2 the one before.

Deviations: the pooling head of a tower is dropped where its configuration allows (`vision_use_head`).

Shapes: pixels [B, 3, S, S] -> features [B, N, D], N = (S // patch_size)^2 in reading order (pixels that are left over at the
right and lower edge belong to no patch); class and register tokens dropped.
"""

from typing import Any

from torch import Tensor
from transformers import AutoModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tessera.config import config
from tessera.errors import UserError, unknown
from tessera.models.contracts import Encoder
from tessera.nn.vit import Backend
from tessera.registry import part


@part("transformers_vision", socket="encoders")
class TransformersVision(Encoder):
    """Pixels [B, 3, S, S] -> features [B, N, width] of one hidden layer of a transformers vision tower."""

    @config
    class Config:
        """tower: a transformers configuration with model_type; layer: which hidden state; drop: leading
        tokens to leave out (class and register tokens; None: all tokens in front of the grid)."""

        tower: dict[str, Any]
        layer: int = -2
        drop: int | None = None

    def __init__(self, config: Config, backend: Backend | None = None) -> None:
        super().__init__(config, backend)
        values = dict(config.tower)
        kind = values.pop("model_type", None)
        if not isinstance(kind, str):
            raise UserError("encoders.tower wants a transformers vision configuration with a model_type, e.g. clip_vision_model.")
        if kind not in CONFIG_MAPPING:
            raise unknown("model_type of encoders.tower:", kind, CONFIG_MAPPING.keys())
        described = CONFIG_MAPPING[kind](**values)
        if backend is not None and backend._attn_implementation is not None:
            described._attn_implementation = backend._attn_implementation
        if not isinstance(getattr(described, "image_size", None), int) or not isinstance(
            getattr(described, "patch_size", None), int
        ):
            raise UserError(f"encoders.tower: {kind} has no square image_size and patch_size, so its grid is not known.")
        side = described.image_size // described.patch_size
        self.layer = config.layer
        self.drop = config.drop
        self.image_size: int = described.image_size
        self.patch_size: int = described.patch_size
        self.width: int = described.hidden_size
        self.grid = (side, side)
        self.tower = AutoModel.from_config(described)
        depth = described.num_hidden_layers
        if not -depth - 1 <= config.layer <= depth:
            raise UserError(f"encoders.layer is {config.layer}, but {kind} has {depth} layers.")
        self.level_count: int = max(1, config.layer % (depth + 1))

    def init_weights(self) -> None:
        """Nothing: the tower is a transformers model and initialises itself."""

    def levels(self, pixel_values: Tensor) -> list[Tensor]:
        """[B, 3, S, S] -> one [B, N, width] per layer up to the configured one, whose output `forward` gives.

        Raises `UserError` for images of another size, or when the tower's tokens do not fill the grid.
        """
        return self._hidden(pixel_values, first=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Raises `UserError` for images of another size, or when the tower's tokens do not fill the grid."""
        return self._hidden(pixel_values)[-1]

    def _hidden(self, pixel_values: Tensor, first: int | None = None) -> list[Tensor]:
        """The hidden states from layer `first` to the configured one, only that one by default."""
        if pixel_values.shape[-2:] != (self.image_size, self.image_size):
            raise UserError(
                f"this encoder takes images of {self.image_size} x {self.image_size} pixels, "
                f"not {pixel_values.shape[-1]} x {pixel_values.shape[-2]}."
            )
        states = self.tower(pixel_values=pixel_values, output_hidden_states=True).hidden_states
        last = self.layer % len(states)
        chosen = states[last if first is None else min(first, last) : last + 1]
        hidden = chosen[-1]
        count = self.grid[0] * self.grid[1]
        drop = hidden.shape[1] - count if self.drop is None else self.drop
        if drop < 0 or hidden.shape[1] - drop != count:
            raise UserError(
                f"the tower gives {hidden.shape[1]} tokens; without {drop} of them they do not fill a grid of {count}."
            )
        return [state[:, drop:] for state in chosen]


TINY = {
    "tower": {
        "model_type": "siglip_vision_model",
        "hidden_size": 24,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
        "vision_use_head": False,
    }
}
UNSUPPORTED = {"gradients": "a tower's layers behind the chosen one, and its last norm, are never run"}
