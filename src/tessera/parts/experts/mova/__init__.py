"""MoVA chooses vision experts by the question, coarsely, and mixes what the chosen ones see into a base encoder, finely.

Source: Zong et al., "MoVA: Adapting Mixture of Vision Experts to Multimodal Context", 2024, arXiv:2404.13046. The first encoder
is the base (CLIP there), the others are experts. Coarse stage: a router reads image and question and names the experts to ask.
Fine stage, the MoV-Adapter: in every block each named expert is read by cross-attention from the base tokens (2-D rotary
positions, an inner norm, an output that begins at zero); a gate, softmax over the named experts from the question and the mean
base token, weights the best `top` of them; self-attention and a SwiGLU layer follow. A RegNet block, averaging of 2x2 places and
another RegNet block halve the grid.

Deviations: the paper's router is the language model itself with a LoRA of its own, which reads the experts' descriptions and
writes letters; here a small transformer reads the question, the averaged base tokens and one learned token per expert, and says
yes or no to each, because the socket stands in front of the language model. It learns apart from the rest (`router_loss`), from
labels that say which experts lower the loss (`routing_labels`; how the paper makes its labels is not in its code). The question's
vector comes from a transformer on the language model's embeddings instead of BERT. Experts are resampled with
antialiasing. Encoders of experts that are not named still run; their cross-attention does not.

Shapes: B images, N base places, C base channels, E experts of D_e channels, Q words of the question
-> [B, N / 4, C] (or [B, N, C]).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from tessera.config import config
from tessera.errors import UserError
from tessera.models.contracts import Experts
from tessera.nn import initialise
from tessera.nn.tokens import QuestionText, VisualTokens, from_grid, resample
from tessera.parts.experts.mova.layers import PlacedAttention, QuestionReader, RegBlock, SwiGLU
from tessera.registry import part

CLOSED = -1e6
"""Added to the gate's logits of experts that were not named."""


class AdapterBlock(nn.Module):
    """One block of the MoV-Adapter."""

    def __init__(self, width: int, experts: Sequence[int], text_width: int, heads: int, top: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.top = min(top, len(experts))
        self.cross = nn.ModuleList(PlacedAttention(width, expert, heads, grid) for expert in experts)
        self.query_norm = nn.ModuleList(nn.LayerNorm(width) for _ in experts)
        self.value_norm = nn.ModuleList(nn.LayerNorm(expert) for expert in experts)
        self.gate: nn.Sequential | None = None
        if experts:
            self.gate = nn.Sequential(nn.Linear(text_width + width, width), nn.GELU(), nn.Linear(width, len(experts)))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = PlacedAttention(width, width, heads, grid)
        self.mlp = SwiGLU(width)

    def init_weights(self) -> None:
        """The gate begins even."""
        if self.gate is not None:
            last: Any = self.gate[-1]
            init.zeros_(last.weight)
            init.zeros_(last.bias)

    def weights(self, x: Tensor, text: Tensor, named: Tensor) -> Tensor:
        """The weights [B, E] of experts, which sum to one over the best `top` named ones; all zero where none is named.

        x [B, N, C], text [B, T], named [B, E] bool."""
        assert self.gate is not None
        logits = self.gate(torch.cat([text, x.mean(1)], -1)).float()
        shares = (logits + torch.where(named, 0.0, CLOSED)).softmax(-1)
        chosen = torch.zeros_like(shares).scatter(1, shares.topk(self.top).indices, 1.0) * shares
        chosen = chosen / chosen.sum(1, keepdim=True)
        return (chosen * named.any(1, keepdim=True)).to(x.dtype)

    def forward(self, x: Tensor, values: Sequence[Tensor], text: Tensor, named: Tensor) -> Tensor:
        """Base x [B, N, C], experts' values E x [B, N, D_e] -> [B, N, C]."""
        if self.gate is not None:
            weights = self.weights(x, text, named)
            seen = torch.zeros_like(x)
            for expert, value in enumerate(values):
                if self.training or bool(named[:, expert].any()):
                    found = self.cross[expert](self.query_norm[expert](x), self.value_norm[expert](value))
                    seen = seen + found * weights[:, expert, None, None]
            x = x + seen
        x = x + self.attention(normed := self.norm1(x), normed)
        return x + self.mlp(self.norm2(x))


class Router(nn.Module):
    """The coarse stage: question and base tokens -> a logit per expert [B, E]."""

    def __init__(self, text_width: int, width: int, heads: int, depth: int, experts: int, base_width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.reader = QuestionReader(text_width, width, heads, depth, tokens=experts, base_width=base_width)
        self.says = nn.Linear(width, 1)
        self.init_weights()

    def init_weights(self) -> None:
        """Neither yes nor no at first."""
        initialise.linear(self.says)

    def forward(self, question: QuestionText, base: Tensor, grid: tuple[int, int]) -> Tensor:
        """question, base [B, N, C] on `grid` -> [B, E]."""
        image = base.detach().transpose(1, 2).unflatten(2, grid)
        places = F.adaptive_avg_pool2d(image, (min(self.side, grid[0]), min(self.side, grid[1])))
        return self.says(self.reader(question, places.flatten(2).transpose(1, 2)))[..., 0]

    @staticmethod
    def choose(logits: Tensor, most: int) -> Tensor:
        """Logits [B, E] -> [B, E] bool: those above zero, at most the `most` best of them; maybe none."""
        best = torch.zeros_like(logits, dtype=torch.bool)
        return best.scatter(1, logits.topk(min(most, logits.shape[1])).indices, True) & (logits > 0)


@part("mova", socket="experts", catalog=2)
class MoVA(Experts):
    """Base and experts -> one set of visual tokens of the base's width."""

    reads_question = True

    @config
    class Config:
        """blocks of the adapter; heads of its attention (None: of 32 channels, or a few more); top: most experts that a block
        mixes; routing: "all" names every expert (until the router has learned), "router" those that it says yes to, at most
        `most`; reader_width, reader_depth, reader_heads: of the transformers that read the question; routing_side: the router
        sees the base as so many places squared; downsample: whether the grid is halved."""

        blocks: int = 3
        heads: int | None = None
        top: int = 3
        routing: Literal["all", "router"] = "all"
        most: int = 3
        reader_width: int = 64
        reader_depth: int = 1
        reader_heads: int = 2
        routing_side: int = 4
        downsample: bool = True

        def validate_ranges(self) -> None:
            for name in ("blocks", "top", "most", "reader_width", "reader_depth", "reader_heads", "routing_side"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} is at least 1, not {getattr(self, name)}.")
            if self.reader_width % self.reader_heads:
                raise ValueError(f"reader_width {self.reader_width} cannot be divided among {self.reader_heads} heads.")

    def __init__(
        self,
        config: Config,
        widths: Sequence[int],
        grids: Sequence[tuple[int, int]],
        text_width: int | None = None,
    ) -> None:
        """text_width: channels of the question's words. Raises `UserError` where there are experts and nobody who asks, and for
        heads that do not divide the base."""
        super().__init__(config, widths, grids)
        base, experts, self.base_grid = widths[0], widths[1:], grids[0]
        heads = config.heads if config.heads is not None else heads_of(base)
        if heads < 1 or base % (4 * heads):
            raise UserError(f"experts 'mova': {heads} heads of 2-D rotary positions do not divide {base} channels; set heads.")
        if experts and text_width is None:
            raise UserError("experts 'mova' chooses by the question: it needs the width of its words (text_width).")
        rows, columns = self.base_grid
        self.config = config
        self.width = base
        self.grid = (max(1, rows // 2), max(1, columns // 2)) if config.downsample else self.base_grid
        self.experts = len(experts)
        self.position = nn.Parameter(torch.zeros(1, rows * columns, base))
        self.reader: QuestionReader | None = None
        self.router: Router | None = None
        if text_width is not None and experts:
            shape = (text_width, config.reader_width, config.reader_heads, config.reader_depth)
            self.reader = QuestionReader(*shape, tokens=1)
            if config.routing == "router":
                self.router = Router(*shape, experts=len(experts), base_width=base, side=config.routing_side)
        sizes = (base, experts, config.reader_width, heads, config.top, self.base_grid)
        self.blocks = nn.ModuleList(AdapterBlock(*sizes) for _ in range(config.blocks))
        self.before = RegBlock(base) if config.downsample else None
        self.after = RegBlock(base) if config.downsample else None
        self.init_weights()

    def init_weights(self) -> None:
        """The adapter begins as the base."""
        init.zeros_(self.position)
        for module in self.modules():
            if module is not self and isinstance(module, initialise.OwnWeights):
                module.init_weights()

    def forward(
        self, sets: Sequence[VisualTokens], question: QuestionText | None = None, named: Tensor | None = None
    ) -> VisualTokens:
        """sets: base, then experts; named [B, E] bool: experts that are asked, in place of the router's choice -> [B, N', C].

        Raises `UserError` for a set that is not a full grid, or where the question is missing.
        """
        base, values = self.base_and_experts(sets)
        x = base + self.position
        text = x.new_zeros(len(x), 0)
        if self.reader is not None:
            text = self.reader(self.asked(question, x))[:, 0]
        if named is None:
            named = torch.ones(len(x), self.experts, dtype=torch.bool, device=x.device)
            if self.router is not None:
                named = self.router.choose(self.router(self.asked(question, x), base, self.base_grid), self.config.most)
        for block in self.blocks:
            x = block(x, values, text, named)
        x = (x + base) / 2
        if self.before is not None and self.after is not None:
            image = self.before(x.transpose(1, 2).unflatten(2, self.base_grid))
            x = self.after(F.adaptive_avg_pool2d(image, self.grid)).flatten(2).transpose(1, 2)
        return from_grid(x, self.grid)

    def base_and_experts(self, sets: Sequence[VisualTokens]) -> tuple[Tensor, list[Tensor]]:
        """The base's features [B, N, C], and the experts' on its grid, [B, N, D_e] each."""
        for index, tokens in enumerate(sets):
            if tokens.grid is None:
                raise UserError(f"experts 'mova' needs full grids; the tokens of encoder {index} are not one.")
        return sets[0].features, [resample(t.features, t.grid, self.base_grid) for t in sets[1:] if t.grid is not None]

    def asked(self, question: QuestionText | None, x: Tensor) -> QuestionText:
        """The question, in the base's dtype. Raises `UserError` if there is none."""
        if question is None:
            raise UserError("experts 'mova' chooses by the question: give input_ids together with the images.")
        return QuestionText(embeddings=question.embeddings.to(x.dtype), mask=question.mask)


def heads_of(width: int) -> int:
    """The most heads of at least 32 channels, a multiple of four, that divide `width` channels; else one."""
    return max((heads for heads in range(1, width // 32 + 1) if width % (4 * heads) == 0), default=1)


def routing_labels(losses: Tensor, base: Tensor, most: int = 3) -> Tensor:
    """Which experts should be named: losses [B, E] with one expert alone, base [B] with none -> [B, E] bool: those that lower the
    loss, at most the `most` best."""
    gain = base[:, None] - losses
    return Router.choose(gain, most)


def router_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean binary cross-entropy of the router's logits [B, E] against `routing_labels` [B, E]."""
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float())
