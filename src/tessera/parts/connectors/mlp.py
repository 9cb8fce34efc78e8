"""Multi-layer perceptron from visual width to language width.

Source: Liu et al., "Improved Baselines with Visual Instruction Tuning (LLaVA-1.5)", 2023, arXiv:2310.03744:
two layers with GELU instead of one linear layer.

Deviations: an optional LayerNorm in front, as InternVL has, which steadies training when the towers' scales
differ.

Shapes: [B, N, D] -> [B, N, E].
"""

from itertools import pairwise

from torch import nn

from tessera.config import config
from tessera.models.contracts import Connector
from tessera.nn import initialise
from tessera.nn.tokens import VisualTokens
from tessera.registry import part


@part("mlp", socket="connectors")
class MLP(Connector):
    """[B, N, width] -> [B, N, out_width]: (norm), linear, GELU, linear, ... linear."""

    @config
    class Config:
        """Linear layers (`depth`), width between them (`hidden`, None: the language model's), LayerNorm in front
        (`norm`), `bias`.
        """

        depth: int = 2
        hidden: int | None = None
        norm: bool = False
        bias: bool = True

        def validate_depth(self) -> None:
            if self.depth < 1 or (self.hidden is not None and self.hidden < 1):
                raise ValueError(f"depth and hidden must be at least 1, not {self.depth} and {self.hidden}.")

    def __init__(self, config: Config, width: int, out_width: int) -> None:
        super().__init__(config, width, out_width)
        hidden = config.hidden or out_width
        widths = [width] + [hidden] * (config.depth - 1) + [out_width]
        self.norm = nn.LayerNorm(width) if config.norm else nn.Identity()
        self.layers = nn.ModuleList(nn.Linear(before, after, bias=config.bias) for before, after in pairwise(widths))
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02, zero bias."""
        initialise.tree(self)

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """[B, N, D] -> [B, N, E]."""
        x = self.norm(tokens.features)
        for index, layer in enumerate(self.layers):
            x = layer(x if index == 0 else nn.functional.gelu(x))
        return tokens.with_features(x)
