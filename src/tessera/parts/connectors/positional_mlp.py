"""Multi-layer perceptron that also tells the language model where in the image each token stands.

Sources: Liu et al., "Improved Baselines with Visual Instruction Tuning (LLaVA-1.5)", 2023, arXiv:2310.03744 (the perceptron);
Tancik et al., "Fourier Features Let Networks Learn High Frequency Functions", 2020, arXiv:2006.10739 (the places).

Deviations: both are ours to combine. The place is added after the perceptron, so that a token's two coordinates are linear in
what the language model reads; a small model then need not derive them from the order of the tokens. Both are normalised and
weighed by learned gains that start equal, since features of experts are many times larger than places and would drown them.

Shapes: [B, N, D] -> [B, N, E].
"""

import math

import torch
from torch import Tensor, nn

from tessera.config import config
from tessera.models.contracts import Connector
from tessera.nn import initialise
from tessera.nn.tokens import VisualTokens
from tessera.registry import part

GAIN = 1.0
"""Root mean square of content and of place at the start."""


@part("positional_mlp", socket="connectors")
class PositionalMLP(Connector):
    """norm, linear, GELU, linear, normalised; plus a normalised linear map of the place's Fourier features."""

    @config
    class Config:
        """hidden: width between the layers (None: the language model's); bands: octaves of sine and cosine per axis."""

        hidden: int | None = None
        bands: int = 5

        def validate_widths(self) -> None:
            if self.bands < 1 or (self.hidden is not None and self.hidden < 1):
                raise ValueError(f"bands and hidden must be at least 1, not {self.bands} and {self.hidden}.")

    def __init__(self, config: Config, width: int, out_width: int) -> None:
        super().__init__(config, width, out_width)
        self.bands = config.bands
        hidden = config.hidden or out_width
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, out_width)
        self.place = nn.Linear(2 + 4 * config.bands, out_width, bias=False)
        self.content_gain = nn.Parameter(torch.full((out_width,), GAIN))
        self.place_gain = nn.Parameter(torch.full((out_width,), GAIN))
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02, zero bias, gains `GAIN`."""
        initialise.tree(self)
        nn.init.constant_(self.content_gain, GAIN)
        nn.init.constant_(self.place_gain, GAIN)

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """[B, N, D] -> [B, N, E]."""
        content = self.down(nn.functional.gelu(self.up(self.norm(tokens.features))))
        place = self.place(self.fourier(tokens.positions).to(content.dtype))
        shape = (self.out_width,)
        said, where = (nn.functional.rms_norm(part.float(), shape) for part in (content, place))
        return tokens.with_features((said * self.content_gain + where * self.place_gain).to(content.dtype))

    def fourier(self, positions: Tensor) -> Tensor:
        """Places [B, N, 2] in the unit square -> [B, N, 2 + 4 * bands]: centred coordinates, sines and cosines of octaves."""
        octaves = math.pi * 2.0 ** torch.arange(self.bands, device=positions.device, dtype=torch.float32)
        angles = (positions.float()[..., None] * octaves).flatten(-2)
        return torch.cat([positions.float() * 2 - 1, angles.sin(), angles.cos()], dim=-1)
