"""Whether things are recognised in the views that a picture is cut into, those that the detail grid cuts apart from the rest.

The object expert reads every view; its most confident view of a thing gives the class.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tessera.errors import TesseraError
from tessera.lab.experiment import Arm, Vary
from tessera.lab.outcomes import Outcomes
from tessera.lab.protocols.base import Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.hosts.pixels import UnitBox, View
    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit

LAYERS = ("detail", "adaptive", "global", "random")


@dataclass(frozen=True, slots=True, kw_only=True)
class Views(Protocol):
    """part: of socket `pixels`, with a method `grids`; tile, side: pixels of a view and of the picture; things: least and most.

    Arms: `Vary(name, layers=(...))` with some of "detail", "adaptive", "global" and "random" (as many crops as the adaptive layer
    has, of its size, at random places). Metrics: cut things, other things (share recognised); views (of a picture). A thing is
    cut where a line of the detail grid leaves at least a quarter of its box on either side.
    """

    name: ClassVar[str] = "views"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "image"
    looks: ClassVar[tuple[int, ...]] = (60, 150, 400)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)

    part: str = "mini_monkey"
    tile: int = 112
    side: int = 336
    things: tuple[int, int] = (4, 10)

    def models(self) -> tuple[str, ...]:
        """What reads the views."""
        return ("object-expert",)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """Scenes first .. first + count - 1 of the test world."""
        from tessera.data.dense import object_labels

        expert, _ = lab.reference("object-expert")
        return self._measured(lambda pixels: expert(pixel_values=pixels).logits, object_labels(), arm, first, count)

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Two scenes, read by a fixed random projection of patches."""
        from tessera.data.dense import object_labels

        labels = object_labels()

        def projected(pixels: Tensor) -> Tensor:
            import torch

            patches = pixels.unflatten(3, (14, -1)).unflatten(2, (14, -1)).mean((3, 5)).flatten(2).mT
            return patches @ torch.randn(3, len(labels), generator=torch.Generator().manual_seed(0))

        found: dict[str, list[float] | str] = {}
        for layers in (("detail", "adaptive", "global"), ("detail", "global"), ("random",)):
            outcomes = cls()._measured(projected, labels, Vary("views", layers=layers), 0, 2)
            for metric, (totals, counts) in outcomes.metrics.items():
                found[f"{' '.join(layers)}: {metric}"] = [*totals.tolist(), *counts.tolist()]
        return found

    def _measured(self, logits: Callable[[Tensor], Tensor], labels: list[str], arm: Arm, first: int, count: int) -> Outcomes:
        """logits: pixels [V, 3, tile, tile] -> [V, N, K], K as `labels`, the last two background and text."""
        import numpy as np

        from tessera import registry
        from tessera.config import build
        from tessera.world import World, WorldConfig

        layers = _layers(arm)
        target = registry.get("pixels", self.part).target
        part = target(build(target.Config, {"tile": self.tile}))
        world = World(WorldConfig(split="test", width=self.side, height=self.side, things=self.things, kinds={"scene": 1.0}))
        totals, counts = ({name: np.zeros(count) for name in ("cut things", "other things", "views")} for _ in range(2))
        for place in range(count):
            sample = world[first + place]
            picture, draw = sample.images()[0], random.Random(first + place)
            views = part.views(picture)
            views += [_crop(picture, view, draw) for view in views if view.layer == "adaptive"]
            views = [view for view in views if view.layer in layers]
            columns, rows = part.grids(*picture.size)[0]
            things = [(truth.name, truth.box) for truth in sample.truth()]
            for (_, box), right in zip(things, recognised(logits, labels, views, things), strict=True):
                metric = "cut things" if is_cut(box, columns, rows) else "other things"
                totals[metric][place] += right
                counts[metric][place] += 1
            totals["views"][place], counts["views"][place] = len(views), 1
        return Outcomes({name: (totals[name], counts[name]) for name in totals})


def _layers(arm: Arm) -> tuple[str, ...]:
    assert isinstance(arm, Vary)
    layers = tuple(dict(arm.settings).get("layers", ()))
    if not layers or set(layers) - set(LAYERS):
        raise TesseraError(f"views knows layers={LAYERS}, not {layers}.")
    return layers


def is_cut(box: UnitBox, columns: int, rows: int) -> bool:
    """Whether a line of the grid leaves at least a quarter of the box on either side."""
    for low, high, count in ((box[0], box[2], columns), (box[1], box[3], rows)):
        if any(0.25 <= (k / count - low) / (high - low) <= 0.75 for k in range(1, count)):
            return True
    return False


def _crop(picture: Any, view: View, draw: random.Random) -> View:
    """As much of the picture as a view shows, from anywhere."""
    from tessera.hosts.pixels import View

    wide, high = view.box[2] - view.box[0], view.box[3] - view.box[1]
    x, y = draw.uniform(0, 1 - wide), draw.uniform(0, 1 - high)
    box = (x, y, x + wide, y + high)
    pixels = tuple(round(side * length) for side, length in zip(box, (*picture.size, *picture.size), strict=True))
    return View(picture.crop(pixels).resize(view.image.size), box, "random")


def recognised(
    logits: Callable[[Tensor], Tensor], labels: list[str], views: list[View], things: list[tuple[str, UnitBox]]
) -> list[bool]:
    """Per thing: whether it is named rightly in the view in which its patches are named with the highest probability."""
    import numpy as np
    import torch

    from tessera.data.dense import to_pixels

    with torch.no_grad():
        shares = logits(to_pixels([np.asarray(view.image) for view in views])).softmax(-1)
    side = round(shares.shape[1] ** 0.5)
    middles = (torch.arange(side) + 0.5) / side
    found = []
    for name, box in things:
        surest, right = 0.0, False
        for number, view in enumerate(views):
            x0, y0, x1, y1 = view.box
            across = (middles * (x1 - x0) + x0 >= box[0]) & (middles * (x1 - x0) + x0 <= box[2])
            down = (middles * (y1 - y0) + y0 >= box[1]) & (middles * (y1 - y0) + y0 <= box[3])
            inside = (down[:, None] & across).flatten()
            if not bool(inside.any()):
                continue
            said = shares[number][inside][:, :-2].mean(0)
            if float(said.max()) > surest:
                surest, right = float(said.max()), labels[int(said.argmax())] == name
        found.append(right)
    return found
