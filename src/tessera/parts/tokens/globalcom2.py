"""GlobalCom2 lets the thumbnail decide how much of each tile stays, and which tokens.

Source: Liu et al., "Global Compression Commander: Plug-and-Play Inference Acceleration for High-Resolution Large
Vision-Language Models", 2025, arXiv:2501.05179. Training-free, for hosts that show an image as a thumbnail and tiles. Of the
thumbnail stays the share R, by the class token's attention. A tile's share is R (1 + sigma_j - mean sigma), at most 1, where
sigma is the softmax over tiles of the thumbnail's attention inside of each, divided by a temperature. Inside a tile tokens are
ranked by their own attention plus the thumbnail's, resized to the canvas, both L2-normalised over the tile.

Deviations: none in the equations. As in the authors' code, attention means the class token's logits (before the softmax) in
the tower's last block, averaged over heads. Positions are kept unless `positions="reindex"`. Newline tokens stay and are not
counted.

Shapes: T tiles, R x C raster of the thumbnail, H x W raster of the canvas, V visual tokens of the batch.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.config import config
from tessera.errors import UserError
from tessera.hosts.part import Block, HostPart, LayerView, Positions, Selection
from tessera.hosts.taps import listen
from tessera.lab.claim import Finding, budget, claim
from tessera.nn.raster import Raster, for_rows, on_prompt, raster
from tessera.nn.reduction import share, top_by_group
from tessera.registry import part

if TYPE_CHECKING:
    from contextlib import ExitStack

    from tessera.hosts.plug import Host
    from tessera.lab.lab import Lab


_LOGITS = "class logits"


def tile_sums(thumbnail: Tensor, tiles: tuple[int, int]) -> Tensor:
    """The thumbnail's scores [R, C] summed over the cells of a lattice of `tiles` (rows, columns) -> [T] float64.

    Cells are R // rows by C // columns places; what is left over belongs to the last ones.
    """
    rows, columns = (
        (torch.arange(side, device=thumbnail.device) // max(side // count, 1)).clamp(max=count - 1)
        for side, count in zip(thumbnail.shape, tiles, strict=True)
    )
    cell = rows[:, None] * tiles[1] + columns
    sums = torch.zeros(tiles[0] * tiles[1], dtype=torch.float64, device=thumbnail.device)
    return sums.index_add(0, cell.flatten(), thumbnail.double().flatten())


def tile_shares(sums: Tensor, keep: float, temperature: float) -> Tensor:
    """Sums [T] -> share of each tile's tokens that stays [T] float64: mean `keep` unless one is cut to 1."""
    sigma = ((sums - sums.max()) / temperature).softmax(0)
    return (keep * (1 + sigma - sigma.mean())).clamp(max=1)


def class_logits(query: Tensor, key: Tensor, scaling: float | None) -> Tensor:
    """What the first token asks of all: query, key [B, H, K, D] -> logits [B, K] float32, the heads' mean, without a gradient."""
    with torch.no_grad():
        logits = (query[:, :, :1] @ key.mT)[:, :, 0].float()
        return logits.mean(1) * (query.shape[-1] ** -0.5 if scaling is None else scaling)


def lattice(canvas: Block, side: tuple[int, int]) -> tuple[tuple[int, int], Tensor]:
    """How tiles of `side` (rows, columns) make up a canvas: their number (rows, columns), the tile of each place [H, W] int64.

    A canvas that is no multiple of the side had its padding cut off, as much on either side.
    """
    tiles = (-(-canvas.rows // side[0]), -(-canvas.columns // side[1]))
    row, column = (
        (torch.arange(length) + (count * step - length) // 2) // step
        for length, count, step in zip((canvas.rows, canvas.columns), tiles, side, strict=True)
    )
    return tiles, row[:, None] * tiles[1] + column


def guided(own: Tensor, thumbnail: Tensor, tile: Tensor, tiles: int) -> Tensor:
    """Scores of the canvas: own [H, W], thumbnail [R, C], tile [H, W] int64 below `tiles` -> [H, W].

    Own scores plus the thumbnail's, bilinearly resized to the canvas, each divided by its L2 norm over the tile.
    """
    seen = F.interpolate(thumbnail[None, None].float(), size=own.shape, mode="bilinear", align_corners=False)[0, 0]
    score = torch.zeros_like(seen)
    for values in (own.float(), seen):
        norms = values.new_zeros(tiles).index_add(0, tile.flatten(), values.square().flatten()).sqrt()
        score = score + values / norms.clamp(min=1e-12)[tile]
    return score


def compressed(score: Tensor, places: Raster, keep: float, temperature: float) -> Tensor:
    """Score [V] -> [V] bool, the tokens that stay. Raises `UserError` for an image that is no thumbnail with a canvas."""
    group = torch.full_like(places.block, -1)
    ranked = torch.zeros_like(score, dtype=torch.float32)
    counts: list[Tensor] = []
    total = 0
    for whole, canvas, first in _pairs(places):
        there = [(places.block == first + i) & ~places.newline for i in (0, 1)]
        thumbnail = score[there[0]].view(whole.rows, whole.columns)
        tiles, tile = lattice(canvas, (whole.rows, whole.columns))
        tile = tile.to(score.device)
        number = tiles[0] * tiles[1]
        ranked[there[0]] = thumbnail.flatten().float()
        ranked[there[1]] = guided(score[there[1]].view(canvas.rows, canvas.columns), thumbnail, tile, number).flatten()
        group[there[0]] = total
        group[there[1]] = total + 1 + tile.flatten()
        sizes = tile.flatten().bincount(minlength=number)
        shares = tile_shares(tile_sums(thumbnail, tiles), keep, temperature)
        counts += [share(torch.tensor([thumbnail.numel()], device=score.device), keep), (sizes * shares).floor().long()]
        total += 1 + number
    return (group < 0) | top_by_group(ranked[None], group[None], torch.cat(counts)[None])[0]


def _pairs(places: Raster) -> list[tuple[Block, Block, int]]:
    """Thumbnail and canvas of every image, with the number of the first of the two blocks."""
    blocks = places.blocks
    both = list(zip(blocks[::2], blocks[1::2], strict=False))
    fits = len(blocks) % 2 == 0 and all(a == b and whole.whole and not canvas.whole for (a, whole), (b, canvas) in both)
    if not blocks or not fits:
        raise UserError(
            "globalcom2 lets a thumbnail guide the tiles of the same image; this host shows an image otherwise, as one raster. "
            "fopru prunes by attention without tiles."
        )
    return [(whole, canvas, 2 * number) for number, ((_, whole), (_, canvas)) in enumerate(both)]


@part("globalcom2", socket="tokens", catalog=347)
class GlobalCom2(HostPart):
    """Compresses thumbnail and tiles in front of the first decoder layer."""

    needs = ("tower attention", "class token", "token map", "raster")
    claims = ("visual tokens",)

    @config
    class Config:
        """keep: share R of the thumbnail's and, on average, of the tiles' tokens that stays, 0 to 1.
        temperature: of the softmax over tiles.
        block: tower block whose attention is read, negative ones from the last.
        positions: of the tokens that stay."""

        keep: float = 0.25
        temperature: float = 10.0
        block: int = -1
        positions: Positions = "keep"

        def validate_keep(self) -> None:
            if not 0 <= self.keep <= 1:
                raise ValueError(f"keep is a share from 0 to 1, not {self.keep}.")

        def validate_temperature(self) -> None:
            if self.temperature <= 0:
                raise ValueError(f"temperature must be above 0, not {self.temperature}.")

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Every token stays."""
        return {"keep": 1.0}

    @classmethod
    def example(cls, layers: int) -> dict[str, Any]:
        """Half of the tokens stay."""
        return {"keep": 0.5}

    @property
    def positions(self) -> Positions:
        """As configured."""
        return self.config.positions

    def boundaries(self, host: Host) -> Collection[int]:
        """The first layer."""
        return () if self.config.keep >= 1 else (0,)

    def install(self, host: Host, undo: ExitStack) -> None:
        """Listens to the class token in one block of the tower. Raises `UserError` for a block that does not exist."""
        if self.config.keep >= 1:
            return
        blocks = host.anatomy.tower_blocks
        assert blocks is not None
        if not -len(blocks) <= self.config.block < len(blocks):
            raise UserError(f"globalcom2: the tower has {len(blocks)} blocks, and no block {self.config.block}.")

        def hear(module: nn.Module, query: Tensor, key: Tensor, mask: Any, scaling: float | None) -> None:
            host.prompt.hear((self.config.block, _LOGITS), class_logits(query, key, scaling))

        listen(host.anatomy.attention(blocks[self.config.block]), hear, undo)

    def select(self, view: LayerView) -> Selection | None:
        """Compresses at layer 0."""
        if view.layer or self.config.keep >= 1 or not bool(view.visual.any()):
            return None
        places = raster(view.layouts(), view.hidden.device)
        images, host = view.sequence.images, view.host
        score = host.anatomy.family.token_scores(host.model, images.raw[self.config.block, _LOGITS], images.inputs)
        stays = compressed(for_rows(score.to(view.hidden.device), view.visual), places, self.config.keep, self.config.temperature)
        return Selection(keep=on_prompt(stays, view.visual, True))


# Claims


@budget
def at(share: float, layers: int) -> dict[str, Any]:
    """Dropping happens in front of the first layer."""
    return {"keep": share}


@claim("keeping everything changes no bit", kind="exact")
def identity(lab: Lab) -> Finding:
    """On a tiny host that shows a thumbnail and tiles."""
    return lab.hosted("globalcom2", ("llava_next",))


@claim("shares and what stays are those of the equations, tile by tile", kind="exact", paper="equations 4 to 8")
def like_a_loop(lab: Lab) -> Finding:
    """Against loops over tiles and tokens on random scores of a 4 x 4 thumbnail and a canvas of 2 x 3 tiles."""
    from tessera.hosts.part import Layout
    from tessera.lab.instruments.exact import best, same

    whole, canvas = Block(0, 4, 4), Block(16, 8, 12, whole=False)
    places = raster([[Layout(16 + 96, (whole, canvas))]])
    score = torch.randn(112, generator=torch.Generator().manual_seed(0))
    thumbnail, own = score[:16].view(4, 4), score[16:].view(8, 12)
    sums = [float(thumbnail[2 * r : 2 * r + 2, [c] if c < 2 else [2, 3]].double().sum()) for r in range(2) for c in range(3)]
    powers = [math.exp((s - max(sums)) / 10) for s in sums]
    sigma = [p / sum(powers) for p in powers]
    shares = [min(1.0, 0.5 * (1 + s - sum(sigma) / 6)) for s in sigma]
    seen = F.interpolate(thumbnail[None, None], size=(8, 12), mode="bilinear", align_corners=False)[0, 0]
    kept = best(range(16), score, 8)
    for number, share_ in enumerate(shares):
        r, c = divmod(number, 3)
        inside = (slice(4 * r, 4 * r + 4), slice(4 * c, 4 * c + 4))
        both = own[inside] / own[inside].norm() + seen[inside] / seen[inside].norm()
        for place in best(range(16), both.flatten(), int(16 * share_)):
            kept.append(16 + (4 * r + place // 4) * 12 + 4 * c + place % 4)
    found = compressed(score, places, 0.5, 10.0).nonzero().flatten().tolist()
    return same({"the same tokens stay": found == sorted(kept)}, share_sum=abs(sum(shares) / 6 - 0.5))


@claim("guided by the thumbnail, more of a small thing's tokens stay than tile by tile", kind="effect", paper="table 3")
def finds_the_tile(lab: Lab) -> Finding:
    """Scenes of one or two things in 2 x 2 tiles and a thumbnail. No trained model of that kind is shipped, so what the object
    expert takes for a thing stands for the class token's attention. Baseline: as many tokens of every tile by its own scores;
    control: by lot. Measured is the share of a thing's canvas tokens that stay at a quarter."""
    import numpy as np

    from tessera.hosts.part import Layout
    from tessera.lab.lab import mean, spread
    from tessera.training.dense import to_pixels

    expert, _ = lab.reference("object-expert")
    places = raster([[Layout(5 * 196, (Block(0, 14, 14), Block(196, 28, 28, whole=False)))]])
    tile = lattice(places.blocks[1][1], (14, 14))[1].flatten()
    found: dict[str, list[float]] = {"guided": [], "local": [], "lot": [], "tokens": []}
    for seed in lab.seeds:
        world = lab.world(seed=seed, width=224, height=224, things=(1, 2), kinds={"scene": 1.0})
        chance, kept = torch.Generator().manual_seed(seed), dict.fromkeys(found, 0)
        total = 0
        for sample in (world[index] for index in range(60)):
            picture = sample.images()[0]
            crops = [picture.crop((112 * c, 112 * r, 112 * c + 112, 112 * r + 112)) for r in (0, 1) for c in (0, 1)]
            with torch.no_grad():
                logits = expert(pixel_values=to_pixels([np.asarray(v) for v in (picture.resize((112, 112)), *crops)])).logits
            thing = logits[..., :-2].logsumexp(-1) - logits[..., -2]  # against the background
            tiles = thing[1:].view(2, 2, 14, 14).transpose(1, 2).reshape(28 * 28)
            guided = compressed(torch.cat([thing[0], tiles]), places, 0.25, 10.0)[196:]
            own = top_by_group(tiles[None], tile[None], torch.tensor([[49] * 4]))[0]
            lot = top_by_group(
                torch.rand(1, 784, generator=chance), torch.zeros(1, 784, dtype=torch.int64), torch.tensor([[196]])
            )
            _, visible = sample.masks()
            for mask in visible:
                cells = torch.from_numpy(mask).view(28, 8, 28, 8).float().mean((1, 3)).flatten() >= 0.5
                total += int(cells.sum())
                for name, stays in (("guided", guided), ("local", own), ("lot", lot[0])):
                    kept[name] += int((stays & cells).sum())
            kept["tokens"] += int(guided.sum())
        for name in ("guided", "local", "lot"):
            found[name].append(kept[name] / total)
        found["tokens"].append(kept["tokens"] / 60)
    guided_, local = mean(found["guided"]), mean(found["local"])
    return Finding(
        checks={
            "at least one point more stays than tile by tile": guided_ >= local + 0.01,
            "more stays than by lot": guided_ > mean(found["lot"]),
            "with no more tokens": mean(found["tokens"]) <= 1.02 * 196,
        },
        measured={"share of a thing's tokens": guided_, "canvas tokens": mean(found["tokens"])},
        baseline={"share of a thing's tokens": local, "canvas tokens": 196.0},
        control={"share of a thing's tokens": mean(found["lot"]), "canvas tokens": 196.0},
        spread={"share of a thing's tokens": spread(found["guided"])},
        seeds=lab.seeds,
        shape="60 scenes of 224 x 224 pixels a seed",
        note="at temperature 10 few tokens move between tiles unless the thumbnail's sums differ by tens.",
    )


@claim("a quarter of thumbnail and tiles: FLOPs fall with the tokens", kind="cost", paper="table 5")
def saves(lab: Lab) -> Finding:
    """On a tiny LLaVA-NeXT with random weights: what the language model is left with."""
    from tessera.hosts.zoo import tiny
    from tessera.lab.instruments.exact import prefilled

    made = tiny("llava_next")
    prompt = made.inputs((1, 1))
    bare = lab.flops(lambda: made.model(**prompt))
    with prefilled("llava_next", "globalcom2", {"keep": 0.25}) as (host, sequence):
        plugged = lab.flops(lambda: host.model(**prompt))
        left, all_ = int(sequence.stages[0].visual.sum()), int(sequence.visual.sum())
    return Finding(
        checks={"at most 35 % of the visual tokens, newlines included": left <= 0.35 * all_, "fewer FLOPs": plugged < bare},
        measured={"visual tokens": float(left), "MFLOPs": plugged / 1e6},
        baseline={"visual tokens": float(all_), "MFLOPs": bare / 1e6},
        shape="6 layers of width 64, 2 prompts",
    )
