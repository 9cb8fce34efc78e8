"""A tower trained on image labels is trained further by a self-supervised objective; linear probes read its patches.

Seeds choose the scenes, the starting weights and the order of the data. One first training of each seed serves all arms. Imports
torch inside functions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tessera.errors import TesseraError
from tessera.lab.experiment import Arm, Use, Vary
from tessera.lab.outcomes import Outcomes, per_seed
from tessera.lab.protocols.base import APART, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tessera.lab.behaviour import Numbers
    from tessera.lab.class_tower import ClassTower
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class PostTraining(Protocol):
    """side, patch, width, depth, heads: of the tower, for images of `side` pixels; things: in a scene, tinted at random; images,
    steps of `batch`, lr: of the first training, in which the class token learns to say which tints are in an image; further, lot,
    rate: steps of the objective, images in each, its peak rate; seen, tested: images that the probes are fitted to and tested on.

    Arms: `Use(objective, **options)` and `Vary("before")`, the tower after the first training. Metrics: patch, share of patches
    with a thing on them whose embedding says its tint to a linear probe; image, share of an image's tints that a linear map of
    its mean patch finds.
    """

    name: ClassVar[str] = "post_training"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8, 12)
    arms: ClassVar[tuple[type[Arm], ...]] = (Use, Vary)

    side: int = 64
    patch: int = 8
    width: int = 64
    depth: int = 4
    heads: int = 4
    things: tuple[int, int] = (1, 3)
    images: int = 1200
    steps: int = 300
    batch: int = 32
    lr: float = 1e-3
    further: int = 100
    lot: int = 16
    rate: float = 1e-3
    seen: int = 150
    tested: int = 150

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """One tower for each seed."""
        assert isinstance(arm, (Use, Vary))
        if isinstance(arm, Vary) and (arm.name != "before" or arm.settings):
            raise TesseraError(f"post_training knows an objective and Vary('before'), not {arm}.")
        rows = []
        for seed in range(first, first + count):
            known = [lab.behaviour(f"protocol {self.name}"), lab.behaviour("core world")]
            rows.append(self.row(arm, seed, lab.folder("post-training", self.plain(), seed, known)))
        return per_seed({metric: [row[metric] for row in rows] for metric in rows[0]})

    def row(self, arm: Arm, seed: int, folder: Any = None) -> dict[str, float]:
        """What the probes read; the tower after its first training is kept in the folder, if one is given."""
        import torch

        from tessera.lab.class_tower import labelled, probed, tinted_scenes

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tower = self.trained(seed, folder)
            if isinstance(arm, Use):
                torch.manual_seed(seed)
                self.go_on(tower, arm.part, arm.options, seed)
        sets = [
            labelled(tinted_scenes(split, self.things, count, self.side, seed), self.patch)
            for split, count in (("val", self.seen), ("test", self.tested))
        ]
        return probed(tower.eval(), sets[0], sets[1])

    def trained(self, seed: int, folder: Any = None) -> ClassTower:
        """The tower after its first training."""
        from torch.nn import functional as F

        from tessera.lab.class_tower import ClassTower, labelled, tinted_scenes
        from tessera.lab.fit import fit_rows, keep, restored

        tower = ClassTower(self.side, self.patch, self.width, self.depth, self.heads)
        if folder is not None and restored(tower, folder):
            return tower

        def loss(pixels: Tensor, tints: Tensor) -> Tensor:
            return F.binary_cross_entropy_with_logits(tower.tints(pixels), tints)

        pixels, tints, _ = labelled(tinted_scenes("train", self.things, self.images, self.side, seed), self.patch)
        fit_rows(tower, loss, (pixels, tints), steps=self.steps, batch=self.batch, lr=self.lr, seed=seed)
        if folder is not None:
            keep(tower, folder)
        return tower

    def go_on(self, tower: ClassTower, objective: str, options: Mapping[str, Any], seed: int) -> None:
        """Trains the tower by the objective, in place."""
        from tessera import registry
        from tessera.config import build
        from tessera.lab.class_tower import Model
        from tessera.lab.fit import descend
        from tessera.world import World

        target = registry.get("objectives", objective).target
        part, model = target(build(target.Config, dict(options), objective)), Model(tower)
        part.prepare(model, None)
        world = World(split="train", kinds={"scene": 1.0}, things=self.things, width=self.side, height=self.side)
        collate = part.collate([world], None, self.lot)
        begins = iter(range(APART * seed + APART // 2, APART * (seed + 1), self.lot))

        def loss_of(order: torch.Generator) -> Tensor:
            begin = next(begins)
            found = part.loss(model, collate(range(begin, begin + self.lot)), None)
            return found.loss_sum / found.loss_weight

        model.train()
        descend([*tower.parameters(), *part.parameters()], loss_of, self.further, lr=self.rate, seed=seed)

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """A tiny tower after a few steps: what its patches are before and after some steps of locality alignment, and probes."""
        import torch

        from tessera.lab.behaviour import summary
        from tessera.lab.class_tower import labelled, tinted_scenes

        micro = cls(patch=16, width=16, depth=2, heads=2, images=12, steps=3, batch=4, further=3, lot=2, seen=12, tested=12)
        pixels, tints, places = labelled(tinted_scenes("test", (1, 3), 4, 64, 0), 16)
        found: dict[str, list[float] | str] = {"pixels": summary(pixels), "tints": summary(tints), "places": summary(places)}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            tower = micro.trained(0)
            with torch.no_grad():
                found["before"] = summary(tower(pixels))
            micro.go_on(tower, "locality_alignment", {"depth": 1, "scale": 0.5}, 0)
            with torch.no_grad():
                found["after"] = summary(tower.eval()(pixels))
        found["probes"] = list(micro.row(Vary("before"), 0).values())
        return found
