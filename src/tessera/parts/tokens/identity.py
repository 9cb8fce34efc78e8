"""Every visual token is kept: the plain case of the `tokens` socket.

Shapes: [B, N, D] -> [B, N, D].
"""

from tessera.config import config
from tessera.models.contracts import TokenModule
from tessera.nn.tokens import VisualTokens
from tessera.registry import part


@part("identity", socket="tokens")
class Identity(TokenModule):
    """Hands the tokens on."""

    @config
    class Config:
        """No settings."""

    @staticmethod
    def token_count(config: Config, count: int) -> int:
        """N tokens become N."""
        return count

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """[B, N, D] -> the same."""
        return tokens
