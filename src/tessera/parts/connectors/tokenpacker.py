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

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from tessera.config import config
from tessera.errors import UserError
from tessera.lab.claim import Finding, claim
from tessera.nn import initialise
from tessera.nn.point_region import attend_regions, regions, shrink
from tessera.nn.tokens import VisualTokens, from_grid
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def _mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))


@part("tokenpacker", socket="connectors", catalog=288)
class TokenPacker(nn.Module):
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
        super().__init__()
        if width % config.levels:
            raise UserError(f"connectors 'tokenpacker': {width} channels are not {config.levels} levels of equal width.")
        self.out_width, self.factor, self.level = out_width, config.factor, width // config.levels
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


def naive(part: TokenPacker, features: Tensor, grid: tuple[int, int]) -> Tensor:
    """What the paper says, one region and one head at a time: [B, N, V] -> [B, N / s^2, E]."""
    s, heads = part.factor, part.heads
    coarse = shrink(features[..., -part.level :], grid, s)
    images = []
    for image, points in zip(features, coarse, strict=True):
        out = []
        for number, point in enumerate(points):
            row, column = divmod(number, grid[1] // s)
            cells = [(row * s + y) * grid[1] + column * s + x for y in range(s) for x in range(s)]
            query = part.query_in(part.point_norm(part.point(point)))
            keys = [part.key_in(part.key_norm(part.key(image[cell]))) for cell in cells]
            values = [part.value_in(part.value_norm(part.value(image[cell]))) for cell in cells]
            size = query.shape[0] // heads
            mixed = []
            for h in range(heads):
                own = slice(h * size, (h + 1) * size)
                weights = torch.stack([query[own] @ key[own] / size**0.5 for key in keys]).softmax(0)
                mixed.append(sum((w * v[own] for w, v in zip(weights, values, strict=True)), torch.zeros(size)))
            out.append(part.mlp(part.mixed_out(torch.cat(mixed))))
        images.append(torch.stack(out))
    return torch.stack(images)


@claim("every token reads its own region and nothing else", kind="exact", paper="section 3.2")
def equals_the_naive(lab: Lab) -> Finding:
    """Against a loop over regions and heads, on square and other rasters; one patch that changes, changes one token."""
    torch.manual_seed(0)
    apart = {}
    local = True
    for s, grid in ((2, (4, 4)), (2, (2, 6)), (3, (6, 3)), (4, (4, 8))):
        made = TokenPacker(TokenPacker.Config(factor=s, heads=2, levels=2), 32, 24).eval()
        for parameter in made.parameters():
            nn.init.normal_(parameter, std=0.3)
        features = torch.randn(2, grid[0] * grid[1], 32)
        with torch.no_grad():
            ours = made(from_grid(features, grid)).features
            apart[f"squares of {s}, {grid[0]} x {grid[1]}"] = float((ours - naive(made, features, grid)).abs().max())
            features[:, 0] += 1.0
            changed = (made(from_grid(features, grid)).features - ours).abs().amax((0, 2)) > 0
        local = local and bool(changed[0]) and not bool(changed[1:].any())
    return Finding(
        checks={"equal to 1e-5": max(apart.values()) < 1e-5, "one patch changes its own token only": local},
        measured=apart,
        shape="2 levels of 16 channels, 2 heads, float32, random weights",
    )


TYPES = ("category", "attribute", "existence")


@claim("fewer tokens cost little; packing beats pooling and learned queries", kind="effect", paper="section 4.3, tables 1, 4")
def packs(lab: Lab) -> Finding:
    """Small models that differ in the connector: an MLP on all 196 patches; 49 packed tokens; and 4 tokens of each kind: packed,
    pooled (the point queries without their regions), and learned queries that look everywhere."""
    from tessera.lab.instruments.small import TOWER, accuracy, exercise, taught
    from tessera.lab.lab import mean, spread

    front: dict[str, Any] = {"encoders": [dict(TOWER)]}
    everywhere = {"kind": "qformer", "queries": 4, "width": 128, "depth": 2, "heads": 4, "mlp_ratio": 2, "places": True}
    sides: dict[str, dict[str, Any]] = {
        "196, MLP": {"kind": "mlp"},
        "49, packed": {"kind": "tokenpacker", "factor": 2},
        "4, packed": {"kind": "tokenpacker", "factor": 7},
        "4, pooled": {"kind": "tokenpacker", "factor": 7, "inject": False},
        "4, learned queries": {**everywhere, "reads_question": False},
    }
    lesson = exercise(front, 2500, split="train", types=TYPES, things=(1, 3))
    test = exercise(front, 200, split="test", types=TYPES, things=(1, 3))
    found: dict[str, list[float]] = {}
    for name, connector in sides.items():
        for seed in lab.seeds:
            made = taught({**front, "connector": connector}, lesson, seed=seed, steps=400)
            found.setdefault(name, []).append(accuracy(*made, test))
    score = {name: mean(values) for name, values in found.items()}
    return Finding(
        checks={
            "a quarter of the tokens costs at most 1 point": score["196, MLP"] - score["49, packed"] <= 0.01,
            "a 49th of the tokens costs at most 3 points": score["196, MLP"] - score["4, packed"] <= 0.03,
            "at 4 tokens above pooling": score["4, packed"] > score["4, pooled"],
            "at 4 tokens above learned queries": score["4, packed"] > score["4, learned queries"],
        },
        measured={f"accuracy, {name}": score[name] for name in ("49, packed", "4, packed")},
        baseline={"accuracy, 196, MLP": score["196, MLP"]},
        control={f"accuracy, {name}": score[name] for name in ("4, pooled", "4, learned queries")},
        seeds=lab.seeds,
        spread={f"accuracy, {name}": spread(values) for name, values in found.items()},
        shape=f"400 steps of 16 scenes, {len(lesson.rows)} questions about 2500; {len(test.rows)} test questions; language model "
        "of 2 layers of width 128",
        note="What a packed token brings has come through an attention that starts from nothing, as released, where a pooled "
        "one's way is direct: in a training this short it is behind; the paper's is of millions of samples. The tower's raster "
        "of 14 x 14 has no squares of 4, so 16 times fewer becomes 49 times fewer.",
    )


@claim("a quarter to a sixteenth of the tokens, and a faster prefill", kind="cost", paper="section 4.3, table 1")
def saves(lab: Lab) -> Finding:
    """Connector and prefill together, against an MLP on all patches."""
    from tessera.lab.instruments.small import reading

    found = {s: reading(lab, {"kind": "tokenpacker", "factor": s}) for s in (2, 3, 4)}
    return Finding(
        checks={
            "144, 64 and 36 tokens of 576": [r.tokens for r in found.values()] == [144, 64, 36],
            "fewer FLOPs": all(r.flops > 1 for r in found.values()),
            "faster in every round": all(r.time.low > 1 for r in found.values()),
        },
        measured={f"FLOPs, times fewer, squares of {s}": r.flops for s, r in found.items()}
        | {f"times faster, squares of {s}": r.time.median for s, r in found.items()},
        baseline={"tokens": 576.0},
        shape=found[2].shape,
    )
