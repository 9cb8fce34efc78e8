"""Which tokens of an image's tiles are kept beside a thumbnail: the share of small objects that are still covered.

No model with a class token and tiles is shipped, so what the object expert takes for a thing stands for the class token's
attention; the tower is left out, and with it everything but the choice.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tessera.errors import TesseraError
from tessera.lab.experiment import Arm, Vary
from tessera.lab.outcomes import Outcomes
from tessera.lab.protocols.base import Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit

TILE, SIDE = 112, 14
"""Pixels and patches of a view's side; a picture is 2 x 2 tiles and a thumbnail."""
METRICS = ("small things", "small things' tokens", "things' tokens", "canvas tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Canvas(Protocol):
    """keep: share of the tokens that stays; things: least and most of a scene; small: a thing is small whose cell's side is less
    than this share of the picture's, by default the middle of the sizes 0.17 to 0.46 that the world draws one or two things in;
    temperature: of the softmax over tiles.

    Arms: `Vary(name, choice=...)` with "guided" (by the thumbnail, part globalcom2), "local" (each tile by its own scores, all
    tiles as many) or "random". Of a scene all arms keep as many tokens of the canvas: what "guided" comes to. A thing's tokens
    are those of which it covers at least half.
    Metrics: small things (share of them of whose tokens at least half stay); small things' tokens, things' tokens (share that
    stays, of small and of all things); canvas tokens (that stay).
    """

    name: ClassVar[str] = "canvas"
    version: ClassVar[int] = 2
    unit: ClassVar[Unit] = "image"
    looks: ClassVar[tuple[int, ...]] = (100, 250, 600)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)

    keep: float = 0.1
    things: tuple[int, int] = (1, 2)
    small: float = 0.315
    temperature: float = 10.0

    def models(self) -> tuple[str, ...]:
        """What stands for the tower."""
        return ("object-expert",)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """Scenes first .. first + count - 1 of the test world."""
        expert, _ = lab.reference("object-expert")
        return self._measured(lambda pixels: expert(pixel_values=pixels).logits, arm, first, count)

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Three scenes, with the spread of a patch's colours for how much of a thing it is."""

        def spread(pixels: Tensor) -> Tensor:
            import torch

            patches = pixels.unflatten(3, (SIDE, -1)).unflatten(2, (SIDE, -1))
            deviation = patches.std((1, 3, 5)).flatten(1)
            return torch.stack([deviation, torch.zeros_like(deviation), torch.zeros_like(deviation)], -1)

        found: dict[str, list[float] | str] = {}
        for choice in ("guided", "local", "random"):
            outcomes = cls()._measured(spread, Vary(choice, choice=choice), 0, 3)
            for metric, (totals, counts) in outcomes.metrics.items():
                found[f"{choice}: {metric}"] = [*totals.tolist(), *counts.tolist()]
        return found

    def _measured(self, logits: Callable[[Tensor], Tensor], arm: Arm, first: int, count: int) -> Outcomes:
        """logits: pixels [5, 3, 112, 112] -> [5, 196, K], the last two of K background and text."""
        import numpy as np
        import torch

        from tessera.data.dense import to_pixels
        from tessera.world import World, WorldConfig

        size = 2 * TILE
        world = World(WorldConfig(split="test", width=size, height=size, things=self.things, kinds={"scene": 1.0}))
        choose = self._choice(arm)
        totals, counts = ({name: np.zeros(count) for name in METRICS} for _ in range(2))
        for place in range(count):
            sample = world[first + place]
            picture = sample.images()[0]
            corners = [(x, y) for y in (0, TILE) for x in (0, TILE)]
            views = [picture.resize((TILE, TILE)), *(picture.crop((x, y, x + TILE, y + TILE)) for x, y in corners)]
            with torch.no_grad():
                seen = logits(to_pixels([np.asarray(view) for view in views]))
            score = seen[..., :-2].logsumexp(-1) - seen[..., -2]  # a thing against the background
            tiles = score[1:].view(2, 2, SIDE, SIDE).transpose(1, 2).reshape(4 * SIDE * SIDE)
            stays = choose(score[0], tiles, first + place)
            for thing, mask in zip(sample.frames[0].things, sample.masks()[1], strict=True):
                patches = torch.from_numpy(mask).view(2 * SIDE, -1, 2 * SIDE, size // (2 * SIDE)).float().mean((1, 3)).flatten()
                kept, all_ = int((stays & (patches >= 0.5)).sum()), int((patches >= 0.5).sum())
                of = ("things' tokens", "small things' tokens") if thing.size < self.small else ("things' tokens",)
                for name in of:
                    totals[name][place] += kept
                    counts[name][place] += all_
                if thing.size < self.small and all_:
                    totals["small things"][place] += 2 * kept >= all_
                    counts["small things"][place] += 1
            totals["canvas tokens"][place], counts["canvas tokens"][place] = int(stays.sum()), 1
        return Outcomes({name: (totals[name], counts[name]) for name in totals})

    def _choice(self, arm: Arm) -> Callable[[Tensor, Tensor, int], Tensor]:
        """Scores of the thumbnail [196] and the canvas [784], number of the scene -> [784] bool."""
        import torch

        from tessera import registry
        from tessera.nn.layout import Block, Layout
        from tessera.nn.raster import raster
        from tessera.nn.reduction import top_by_group

        assert isinstance(arm, Vary)
        choice, tokens = dict(arm.settings).get("choice"), SIDE * SIDE
        row = torch.arange(2 * SIDE) // SIDE
        tile = (row[:, None] * 2 + row).flatten()

        if choice not in ("guided", "local", "random"):
            raise TesseraError(f"canvas knows choice='guided', 'local' or 'random', not {choice!r}.")
        part: Any = sys.modules[registry.get("tokens", "globalcom2").target.__module__]
        both = (Block(0, SIDE, SIDE), Block(tokens, 2 * SIDE, 2 * SIDE, whole=False))
        places = raster([[Layout(5 * tokens, both)]])

        def guided(thumbnail: Tensor, tiles: Tensor, number: int) -> Tensor:
            stays: Tensor = part.compressed(torch.cat([thumbnail, tiles]), places, self.keep, self.temperature)
            return stays[tokens:]

        def local(thumbnail: Tensor, tiles: Tensor, number: int) -> Tensor:
            budget = int(guided(thumbnail, tiles, number).sum())
            each = torch.tensor([[budget // 4 + (place < budget % 4) for place in range(4)]])
            return top_by_group(tiles[None], tile[None], each)[0]

        def random(thumbnail: Tensor, tiles: Tensor, number: int) -> Tensor:
            score = torch.rand(1, 4 * tokens, generator=torch.Generator().manual_seed(number))
            budget = guided(thumbnail, tiles, number).sum().view(1, 1)
            return top_by_group(score, torch.zeros(1, 4 * tokens, dtype=torch.int64), budget)[0]

        return {"guided": guided, "local": local, "random": random}[choice]
