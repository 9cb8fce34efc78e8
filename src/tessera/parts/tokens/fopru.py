"""FoPru keeps the visual tokens that the vision tower itself attends to most.

Source: Jiang et al., "FoPru: Focal Pruning for Efficient Large Vision-Language Models", 2024, arXiv:2411.14164. Training-free. A
token's significance is the attention it receives in the tower block whose output the language model sees, averaged over
heads and queries. The rank strategy keeps the most significant tokens of an image; the row strategy keeps whole rows of
the raster by their mean significance, for what runs along lines, such as text. What stays keeps its order.

Deviations: the class token's row as another significance is an option (`score="class"`). Each image keeps its own
share; a raster (a thumbnail, the canvas of its tiles) keeps its own rows, at least one. Newline tokens stay and are not
counted. Positions are kept unless `positions="reindex"`.

Shapes: B rows, K tokens per row, G images per row, V visual tokens of the batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from tessera.config import config
from tessera.errors import UserError
from tessera.hosts.part import LayerView
from tessera.hosts.token_reduction import OneDrop
from tessera.hosts.values import Tap
from tessera.nn.raster import Raster, on_prompt, raster
from tessera.nn.reduction import share, top_by_group
from tessera.registry import part

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tessera.hosts.contract import Host


def significant_rows(score: Tensor, places: Raster, keep: float) -> Tensor:
    """Score [V] -> [V] bool: the tokens of the rows that stay, of each block max(1, floor(keep x rows)).

    A row's score is the mean over its places; of equal rows the upper one stays. Newlines and tokens of no block stay.
    """
    counts = torch.tensor([block.rows for _, block in places.blocks], device=score.device)
    first = counts.cumsum(0) - counts
    inside = (places.block >= 0) & ~places.newline
    line = first[places.block.clamp(min=0)] + places.row.clamp(min=0)
    total = int(counts.sum())
    sums = torch.zeros(total, dtype=torch.float64, device=score.device).index_add_(0, line[inside], score[inside].double())
    columns = torch.tensor([block.columns for _, block in places.blocks], device=score.device).repeat_interleave(counts)
    block_of = torch.arange(len(counts), device=score.device).repeat_interleave(counts)
    stay = top_by_group((sums / columns)[None], block_of[None], share(counts, keep).clamp(min=1)[None])[0]
    return ~inside | stay[line]


@part("fopru", socket="tokens", catalog=244)
class FoPru(OneDrop):
    """Drops the visual tokens of low significance in front of the first decoder layer."""

    needs = ("tower attention", "token map")
    reads_question = False

    @config
    class Config(OneDrop.Config):
        """strategy: single tokens, or rows of the raster; keep is the share of either.
        score: attention received from all tokens, or from the class token.
        block: tower block whose attention is read, negative ones from the last; None: the one whose output the host uses."""

        strategy: Literal["rank", "row"] = "rank"
        score: Literal["received", "class"] = "received"
        block: int | None = None

    def install(self, host: Host, undo: ExitStack) -> None:
        """Checks what only some options need. Raises `UserError` with what the host lacks."""
        has = host.architecture.capabilities
        if self.config.score == "class" and "class token" not in has:
            raise UserError("fopru with score='class' needs a vision tower with a class token: use score='received'.")
        if self.config.strategy == "row" and "raster" not in has:
            raise UserError("fopru with strategy='row' needs to know the raster of the visual tokens: use strategy='rank'.")

    def tower_taps(self, host: Host) -> Mapping[int, Tap]:
        """One block's attention."""
        if self.config.keep >= 1:
            return {}
        block = host.architecture.feature_block if self.config.block is None else self.config.block
        return {block: self.config.score}

    def score(self, view: LayerView) -> Tensor:
        """Significance."""
        return view.tower_scores()

    def keep(self, view: LayerView, ratio: float) -> Tensor:
        """Single tokens, or rows."""
        if self.config.strategy == "rank":
            return super().keep(view, ratio)
        score = self.score(view)
        stay = significant_rows(score[view.visual], raster(view.layouts(), score.device), ratio)
        return on_prompt(stay, view.visual, True)
