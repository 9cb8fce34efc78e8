"""TokenPacker: a coarse token for every square of patches, into which the square's own fine features are packed.

Source: Li et al., "TokenPacker: Efficient Visual Projector for Multimodal LLM", 2024, arXiv:2407.02392. The feature map, made
smaller by the factor s, gives one point query per s x s square; the query attends to the s^2 features of its own square only,
whose keys and values come from several levels of the tower; an MLP takes the outcome to the language model's width.

Deviations: the map may be any raster whose sides s divides (the released code asks for a square of 24 x 24). The levels are the
equal parts of the incoming channels, the last of them being the one that the queries are made of (`levels=4` with what the
released code concatenates: layers 12, 16, 22 and 23 of CLIP); by default keys, values and queries are made of the same
features. The high-resolution variant (tiles and separators) is a matter of the pixels socket. `inject=False` keeps the point
queries and leaves their regions out, the paper's ablation.

Shapes: B images, raster of r x c patches, N = r c, V channels, s factor, W inner width, E of the language model: [B, N, V] ->
[B, N / s^2, E].
"""

from __future__ import annotations

from torch import nn

from tessera.config import config
from tessera.errors import UserError
from tessera.models.contracts import Connector
from tessera.nn import initialise
from tessera.nn.point_region import attend_regions, regions, shrink
from tessera.nn.tokens import VisualTokens, from_grid
from tessera.registry import part


def _mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


@part("tokenpacker", socket="connectors", catalog=288)
class TokenPacker(Connector):
    """[B, N, width] on a raster -> [B, N / s^2, out_width] on the raster that is s times smaller."""

    @config
    class Config:
        """factor s; width W (None: that of one level); heads (None: of 128 channels, as published, at least one); levels: how
        many equal parts the channels have; inject: whether regions are read."""

        factor: int = 2
        width: int | None = None
        heads: int | None = None
        levels: int = 1
        inject: bool = True

        def validate_sizes(self) -> None:
            sizes = (self.factor, self.levels, self.width or 1, self.heads or 1)
            if min(sizes) < 1:
                raise ValueError(f"factor, levels, width and heads are at least 1, not {sizes}.")

    def __init__(self, config: Config, width: int, out_width: int) -> None:
        super().__init__(config, width, out_width)
        if width % config.levels:
            raise UserError(f"connectors 'tokenpacker': {width} channels are not {config.levels} levels of equal width.")
        self.factor, self.level = config.factor, width // config.levels
        inner = config.width or self.level
        self.heads = config.heads or max(1, inner // 128)
        if inner % self.heads:
            raise UserError(f"connectors 'tokenpacker': width {inner} cannot be divided among {self.heads} heads.")
        self.point = nn.Linear(self.level, inner, bias=False)
        self.point_norm = nn.LayerNorm(inner, eps=1e-6)
        self.inject = config.inject
        if config.inject:
            self.key, self.value = _mlp(width, inner, inner), _mlp(width, inner, inner)
            self.key_norm, self.value_norm = nn.LayerNorm(inner, eps=1e-6), nn.LayerNorm(inner, eps=1e-6)
            # The attention's own projections, behind those of the two paths.
            self.query_in, self.key_in, self.value_in = (nn.Linear(inner, inner) for _ in range(3))
            self.mixed_out = nn.Linear(inner, inner)
        self.mlp = _mlp(inner, out_width, out_width)
        self.init_weights()

    @staticmethod
    def token_count(config: Config, count: int) -> int:
        """N tokens become N / s^2. Raises `UserError` if s^2 does not divide N."""
        if count % config.factor**2:
            raise UserError(f"connectors 'tokenpacker': {count} tokens cannot be cut into squares of {config.factor}.")
        return count // config.factor**2

    def init_weights(self) -> None:
        """Truncated normal 0.02, zero bias."""
        initialise.tree(self)

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """[B, N, V] -> [B, N / s^2, E]. Raises `UserError` for tokens that are no raster, or one that s does not divide."""
        grid, s = tokens.grid, self.factor
        if grid is None:
            raise UserError("connectors 'tokenpacker' needs a full raster of tokens; an earlier part has removed some.")
        if grid[0] % s or grid[1] % s:
            raise UserError(f"connectors 'tokenpacker': a raster of {grid[0]} x {grid[1]} cannot be cut into squares of {s}.")
        x = tokens.features
        query = self.point_norm(self.point(shrink(x[..., -self.level :], grid, s)))
        if self.inject:
            key = regions(self.key_in(self.key_norm(self.key(x))), grid, s)
            value = regions(self.value_in(self.value_norm(self.value(x))), grid, s)
            query = self.mixed_out(attend_regions(self.query_in(query), key, value, self.heads))
        return from_grid(self.mlp(query), (grid[0] // s, grid[1] // s))
