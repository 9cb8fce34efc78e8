"""Every visual token is kept: the plain case of the `tokens` socket.

Shapes: [B, N, D] -> [B, N, D].
"""

from torch import nn

from tessera.config import config
from tessera.nn.tokens import VisualTokens
from tessera.registry import part


@part("identity", socket="tokens")
class Identity(nn.Module):
    """Hands the tokens on."""

    @config
    class Config:
        """No settings."""

    def __init__(self, config: Config, width: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.width = width
        self.grid: tuple[int, int] | None = grid

    @staticmethod
    def token_count(config: Config, count: int) -> int:
        """N tokens become N."""
        return count

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """[B, N, D] -> the same."""
        return tokens
