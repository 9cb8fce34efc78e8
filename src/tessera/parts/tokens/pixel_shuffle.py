"""Space to depth: every r x r square of neighbouring tokens becomes one token with r^2 times the channels.

Sources: Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
Convolutional Neural Network", 2016, arXiv:1609.05158 (the operation, inverted here); Chen et al., "How Far
Are We to GPT-4V? (InternVL 1.5)", 2024, arXiv:2404.16821 (its use in front of the projector). Nothing is lost
and the language model reads r^2 times fewer tokens.

Deviations: channels are ordered (row in the square, column in the square, channel).

Shapes: [B, N, D] on a grid (h, w) -> [B, N / r^2, D r^2] on (h / r, w / r).
"""

from tessera.config import config
from tessera.errors import UserError
from tessera.models.contracts import TokenModule
from tessera.nn.tokens import VisualTokens, from_grid
from tessera.registry import part


@part("pixel_shuffle", socket="tokens")
class PixelShuffle(TokenModule):
    """Merges r x r neighbours on channels."""

    @config
    class Config:
        """factor r: the side of the square that becomes one token."""

        factor: int = 2

        def validate_factor(self) -> None:
            if self.factor < 1:
                raise ValueError(f"factor must be at least 1, not {self.factor}.")

    def __init__(self, config: Config, width: int, grid: tuple[int, int]) -> None:
        super().__init__(config, width, grid)
        factor = config.factor
        if grid[0] % factor or grid[1] % factor:
            raise UserError(f"tokens 'pixel_shuffle': a grid of {grid[0]} x {grid[1]} cannot be cut into squares of {factor}.")
        self.factor = factor
        self.width = width * factor * factor
        self.grid = (grid[0] // factor, grid[1] // factor)

    @staticmethod
    def token_count(config: Config, count: int) -> int:
        """N tokens become N / r^2."""
        return count // config.factor**2

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """[B, h w, D] -> [B, h w / r^2, D r^2]. Raises `UserError` for tokens that are not a full grid."""
        if tokens.grid is None or self.grid is None:
            raise UserError("tokens 'pixel_shuffle' needs a full grid of tokens; an earlier part has removed some.")
        (rows, columns), r = self.grid, self.factor
        batch, _, width = tokens.features.shape
        squares = tokens.features.view(batch, rows, r, columns, r, width).transpose(2, 3)
        return from_grid(squares.reshape(batch, rows * columns, r * r * width), self.grid)
