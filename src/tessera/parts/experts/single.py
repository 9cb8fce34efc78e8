"""One encoder, passed through: the plain case of the `experts` socket.

Shapes: one set of tokens [B, N, D] -> the same.
"""

from collections.abc import Sequence

from tessera.config import config
from tessera.errors import UserError
from tessera.models.contracts import Experts
from tessera.nn.tokens import VisualTokens
from tessera.registry import part


@part("single", socket="experts")
class Single(Experts):
    """Hands the only encoder's tokens on."""

    @config
    class Config:
        """No settings."""

    def __init__(self, config: Config, widths: Sequence[int], grids: Sequence[tuple[int, int]]) -> None:
        super().__init__(config, widths, grids)
        if len(widths) != 1:
            raise UserError(
                f"experts 'single' takes one encoder, {len(widths)} are configured. Use 'channel_concat' for several."
            )
        self.width = widths[0]
        self.grid = grids[0]

    def forward(self, sets: Sequence[VisualTokens]) -> VisualTokens:
        """[one set] -> that set."""
        return sets[0]
