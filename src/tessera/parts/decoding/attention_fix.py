"""Imbalanced-attention fix: text attends more to chosen image tokens in deep layers, most in heads that attend to images.

Source: Arif et al., "Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large Vision-Language Model", 2025,
arXiv:2501.12206. A running model's attention is edited, nothing is trained: image tokens are chosen by two streams, what is
attended to most and what covers the picture; from text positions the attention to them is amplified by a factor that grows
with the head's visual sensitivity, and every row is normalised again.

Deviations: no code was released and the paper leaves scores, factors and layers open. Here sensitivity is the mass that the
last token of the question puts on image tokens, relative to the layer's most sensitive head; the factor is 1 + (amplification
- 1) x sensitivity; saliency is the same row, averaged over heads; coverage takes the most salient token of each cell of a
raster; layers are the deeper half, without those that have a sliding window. What was chosen in prefill holds for the whole
answer. A product with renormalised rows is a sum with the logarithm in front of the softmax, which is how it is computed.

Shapes: B rows, S prompt tokens, K tokens of the prompt at a layer, H heads: attention [B, H, K], factors [B, H], chosen [B,
K].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from tessera.config import config
from tessera.errors import UserError
from tessera.hosts.attention_override import biased, override_attention
from tessera.hosts.part import HostPart, LayerView
from tessera.nn.reduction import hashed
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.hosts.contract import Host
    from tessera.hosts.sequence import TokenStage

CELLS = "attention_fix cells"
"""Note of a sequence: which cell of a raster each token of the prompt stands in, [B, S], -1 for none."""


@part("attention_fix", socket="decoding", catalog=138)
class AttentionFix(HostPart):
    """Amplifies attention from text to chosen image tokens."""

    @config
    class Config:
        """amplification of the most sensitive head's attention; layers that are edited, () for the deeper half; salient share
        of the image tokens that the first stream chooses; cells per side of each image's raster, from each of which the
        second stream chooses one token (0: none); heads "sensitive" (by their sensitivity) or "all" (all alike); choice "seen" or
        "random", a control: heads exchange their factors and as many image tokens are drawn by chance, in each layer others,
        from the seed."""

        amplification: float = 1.5
        layers: tuple[int, ...] = ()
        salient: float = 0.25
        cells: int = 4
        heads: Literal["sensitive", "all"] = "sensitive"
        choice: Literal["seen", "random"] = "seen"
        seed: int = 0

        def validate_values(self) -> None:
            if self.amplification <= 0:
                raise ValueError(f"amplification must be above 0 (1 changes nothing), not {self.amplification}.")
            if not 0 <= self.salient <= 1:
                raise ValueError(f"salient is a share between 0 and 1, not {self.salient}.")
            if self.cells < 0:
                raise ValueError(f"cells must not be negative, it is {self.cells}.")

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """See `HostPart`."""
        return {"amplification": 1.0}

    def install(self, host: Host, undo: ExitStack) -> None:
        """See `HostPart`. Raises `UserError` for layers that the host does not have, or that see only a window of the tokens."""
        if self.config.amplification == 1:
            return
        for layer in self.layers(host):
            override_attention(host.architecture.attention(host.layers[layer]), partial(self._attend, host, layer), undo)

    def layers(self, host: Host) -> list[int]:
        """The layers that are edited."""
        count = host.layer_count
        sliding = {n for n in range(count) if windowed(host.architecture.attention(host.layers[n]), n)}
        wanted = self.config.layers or [n for n in range(count // 2, count) if n not in sliding]
        for layer in wanted:
            if not 0 <= layer < count:
                raise UserError(f"attention_fix: there is no layer {layer}; this host has {count}, counted from 0.")
            if layer in sliding:
                raise UserError(f"attention_fix: layer {layer} sees only a window of the tokens; choose others.")
        if not wanted:
            raise UserError(
                "attention_fix: all of this host's deeper layers have sliding windows; name others with layers=(...)."
            )
        return sorted(wanted)

    def transform(self, view: LayerView) -> None:
        """Notes which cell of the raster each visual token stands in."""
        if view.layer == 0 and view.prefill and self.config.amplification != 1 and view.sequence.has_visual:
            view.sequence.notes[CELLS] = self.cells(view)

    def cells(self, view: LayerView) -> Tensor:
        """[B, S] int64: numbers of cells, equal within a cell, -1 for tokens that stand in none.

        Hosts that give no raster have each image's tokens cut into as many stretches.
        """
        sequence, side = view.sequence, self.config.cells
        found = torch.full_like(sequence.image_of, -1)
        if side == 0:
            return found
        if "raster" not in view.host.architecture.capabilities:
            images = sequence.image_of
            for image in range(int(images.max()) + 1):
                own = images == image
                place = own.cumsum(1) - 1
                stretch = place * side * side // own.sum(1, keepdim=True).clamp(min=1)
                found = torch.where(own, image * side * side + stretch, found)
            return found
        for row, layouts in enumerate(view.layouts()):
            places = sequence.visual[row].nonzero()[:, 0]
            start, number = 0, 0
            for layout in layouts:
                for block in layout.blocks:
                    rows = torch.arange(block.rows, device=places.device)[:, None]
                    columns = torch.arange(block.columns, device=places.device)
                    cell = number + (rows * side // block.rows) * side + columns * side // block.columns
                    index = start + block.start + rows * (block.columns + block.newline) + columns
                    found[row, places[index.flatten()]] = cell.flatten()
                    number += side * side
                start += layout.tokens
        return found

    def _attend(
        self,
        host: Host,
        layer: int,
        kernel: Callable[..., Any],
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Any,
        **kwargs: Any,
    ) -> Any:
        sequence = host.sequence
        plain = partial(kernel, module, query, key, value, mask, **kwargs)
        if sequence is None or not sequence.has_visual:
            return plain()
        names = (f"attention_fix factors {layer}", f"attention_fix chosen {layer}")
        text = torch.ones_like(query[:, 0, :, 0], dtype=torch.bool)
        if host.prefill:
            stage = sequence.stages[layer]
            if query.shape[2] != stage.index.shape[1]:
                return plain()
            found = self.choose(stage, sequence.notes[CELLS], query, key, kwargs.get("scaling"))
            if self.config.choice == "random":
                found = by_chance(*found, stage.visual, self.config.seed, layer)
            sequence.notes.update(zip(names, found, strict=True))
            text = ~stage.visual
        factors, chosen = (sequence.notes[name] for name in names)
        boost = factors.log()[:, :, None] * text[:, None]
        return biased(kernel, module, query, key, value, mask, boost, chosen, **kwargs)

    @torch.no_grad()
    def choose(
        self, stage: TokenStage, cells: Tensor, query: Tensor, key: Tensor, scaling: float | None
    ) -> tuple[Tensor, Tensor]:
        """(factors [B, H], chosen [B, K] bool) of one layer."""
        attention = last_row(stage, query, key, scaling)
        seen = attention.masked_fill(~stage.visual[:, None], 0)
        sensitivity = seen.sum(-1)
        relative = sensitivity / sensitivity.amax(1, keepdim=True).clamp(min=torch.finfo(sensitivity.dtype).tiny)
        if self.config.heads == "all":
            relative = torch.ones_like(relative)
        saliency = seen.mean(1).masked_fill(~stage.visual, -1)
        chosen = salient(saliency, stage.visual, self.config.salient) | covering(
            saliency, cells.gather(1, stage.index), stage.visual
        )
        return 1 + (self.config.amplification - 1) * relative, chosen


def windowed(attention: nn.Module, layer: int) -> bool:
    """Whether an attention module sees only a window of the tokens."""
    settings: Any = attention.config
    kinds = getattr(settings, "layer_types", None)
    if kinds is not None:
        return kinds[layer] != "full_attention"
    return getattr(settings, "sliding_window", None) is not None and getattr(settings, "use_sliding_window", True)


def last_row(stage: TokenStage, query: Tensor, key: Tensor, scaling: float | None) -> Tensor:
    """Query [B, H, K, D], key [B, G, >= K, D] -> [B, H, K]: attention of the last instruction token over the tokens up to it."""
    rows, heads, count, width = query.shape
    own = query.gather(2, stage.query[:, None, None, None].expand(rows, heads, 1, width))
    own = own.view(rows, key.shape[1], -1, width)
    scores = (own @ key[:, :, :count].transpose(-1, -2)).float() * (width**-0.5 if scaling is None else scaling)
    places = torch.arange(count, device=query.device)
    hidden = ~stage.real | (places > stage.query[:, None])
    return scores.view(rows, heads, count).masked_fill(hidden[:, None], -torch.inf).softmax(-1)


def salient(saliency: Tensor, visual: Tensor, share: float) -> Tensor:
    """saliency, visual [B, K] -> [B, K] bool: of each row's visual tokens the most salient share, rounded up; of equals the
    earlier."""
    wanted = torch.tensor([math.ceil(share * n) for n in visual.sum(1).tolist()], device=visual.device)
    return visual & (ranks(saliency) < wanted[:, None])


def covering(saliency: Tensor, cells: Tensor, visual: Tensor) -> Tensor:
    """saliency, cells, visual [B, K] -> [B, K] bool: the most salient visual token of every cell."""
    inside = visual & (cells >= 0)
    place = ranks(saliency)
    slots = torch.where(inside, cells + 1, 0)  # slot 0 takes all that stand in no cell
    best = torch.full((cells.shape[0], int(slots.max()) + 1), cells.shape[1], device=cells.device)
    best = best.scatter_reduce(1, slots, torch.where(inside, place, cells.shape[1]), "amin")
    return inside & (place == best.gather(1, slots))


def by_chance(factors: Tensor, chosen: Tensor, visual: Tensor, seed: int, layer: int) -> tuple[Tensor, Tensor]:
    """Factors [B, H], chosen, visual [B, K] -> the same factors at other heads, and in each row as many visual tokens.

    Both depend on the seed, the layer, the number of the head and the token's place among the row's visual tokens alone, so on
    no image and no other row.
    """
    begin = layer << 16  # layers have at most 65536 heads or tokens, so no two share a number
    heads = torch.arange(factors.shape[1], device=factors.device) + begin
    drawn = hashed(visual.cumsum(1) + begin, seed).masked_fill(~visual, -1)
    return factors[:, hashed(heads, seed).argsort(stable=True)], visual & (ranks(drawn) < chosen.sum(1, keepdim=True))


def ranks(scores: Tensor) -> Tensor:
    """[B, K] -> [B, K] int64: 0 for the highest of a row; of equals the earlier comes first."""
    return scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
