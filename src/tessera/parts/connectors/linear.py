"""One linear layer from visual width to language width.

Source: Liu et al., "Visual Instruction Tuning (LLaVA)", 2023, arXiv:2304.08485.
Deviations: none.

Shapes: [B, N, D] -> [B, N, E].
"""

from torch import nn

from tessera.config import config
from tessera.models.contracts import Connector
from tessera.nn import initialise
from tessera.nn.tokens import VisualTokens
from tessera.registry import part


@part("linear", socket="connectors")
class Linear(Connector):
    """[B, N, width] -> [B, N, out_width]."""

    @config
    class Config:
        """bias: whether the layer has one."""

        bias: bool = True

    def __init__(self, config: Config, width: int, out_width: int) -> None:
        super().__init__(config, width, out_width)
        self.project = nn.Linear(width, out_width, bias=config.bias)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02, zero bias."""
        initialise.tree(self)

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """[B, N, D] -> [B, N, E]."""
        return tokens.with_features(self.project(tokens.features))
