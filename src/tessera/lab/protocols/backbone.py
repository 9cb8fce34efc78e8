"""A small tower is trained from scratch on the world: accuracy of kinds of attention, or of dropping patches inside a tower.

The task: at every place (or from the class token) to say in which colour the scene's only thing is tinted. Seeds choose the
scenes of training and of the test, the starting weights and the order of the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tessera.errors import TesseraError
from tessera.lab.experiment import Arm, Build, Use
from tessera.lab.outcomes import Outcomes, per_seed
from tessera.lab.protocols.base import APART, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone(Protocol):
    """side: of the images in pixels; images, tested: of a seed; steps of `batch` images; lr: peak rate of AdamW.

    Arms: `Build(name, encoder={"kind": ..., ...})`. Metric: accuracy, the share of places that say the thing's tint.
    """

    name: ClassVar[str] = "backbone"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8, 12)
    arms: ClassVar[tuple[type[Arm], ...]] = (Build,)

    side: int = 64
    images: int = 1000
    tested: int = 300
    steps: int = 250
    batch: int = 32
    lr: float = 2e-3

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """One training for each seed."""
        assert isinstance(arm, Build)
        spec = {"image_size": self.side, **arm.sockets["encoder"]}
        return per_seed({"accuracy": [self._run(spec, seed) for seed in range(first, first + count)]})

    def _run(self, spec: Mapping[str, Any], seed: int) -> float:
        import torch
        from torch import nn
        from torch.nn import functional as F

        from tessera.lab.fit import fit_rows
        from tessera.models.parts import create
        from tessera.world.backgrounds import TINTS

        train, test = tinted(self.side, "train", self.images, seed), tinted(self.side, "test", self.tested, seed)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tower: Any = create("encoders", dict(spec), "encoder")
            model = nn.Sequential(tower, nn.Linear(tower.width, len(TINTS)))

            def loss(pixels: Tensor, labels: Tensor) -> Tensor:
                logits = model(pixels)
                return F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(logits.shape[1]))

            fit_rows(model, loss, train, steps=self.steps, batch=self.batch, lr=self.lr, seed=seed)
        right = 0.0
        with torch.no_grad():
            for pixels, labels in zip(test[0].split(64), test[1].split(64), strict=True):
                right += float((model(pixels).argmax(-1) == labels[:, None]).double().mean(1).sum())
        return right / len(test[1])

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """A tiny tower after three steps, and the images of the task."""
        from tessera.lab.behaviour import summary

        micro = cls(images=8, tested=16, steps=3, batch=4)
        spec = {"kind": "conv_vit", "image_size": 64, "patch_size": 16, "width": 24, "depth": 1, "heads": 2}
        pixels, labels = tinted(64, "test", 4, 0)
        return {
            "accuracy": [micro._run(spec, 0)],
            "pixels": summary(pixels),
            "tints": [float(label) for label in labels],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerDropping(Protocol):
    """A vision transformer with a class token learns to say the tint; then patches are dropped inside of it, without training.

    width, depth, heads, patch: of the tower; blocks: behind whose attention patches are dropped; side, scene: pixels of an image,
    and of the scene that stands somewhere in it.

    Arms: `Use("evit", keep=..., choice="class" | "random", fuse=...)`: the class token's choice or a random one of the same
    size. One training per seed serves all arms. Metric: accuracy.
    """

    name: ClassVar[str] = "tower_dropping"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8, 12)
    arms: ClassVar[tuple[type[Arm], ...]] = (Use,)

    side: int = 64
    scene: int = 32
    patch: int = 8
    width: int = 64
    depth: int = 4
    heads: int = 4
    blocks: tuple[int, ...] = field(default=(1, 2))
    images: int = 2000
    tested: int = 400
    steps: int = 900
    batch: int = 32
    lr: float = 1e-3

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """One trained tower for each seed, kept for the other arms."""
        import torch

        assert isinstance(arm, Use)
        found = []
        for seed in range(first, first + count):
            known = [lab.behaviour(name) for name in (f"protocol {self.name}", "core world")]
            tower, head = self.trained(seed, lab.folder("tower", self.plain(), seed, torch.__version__, known))
            found.append(self.accuracy(tower, head, arm, seed))
        return per_seed({"accuracy": found})

    def trained(self, seed: int, folder: Path | None = None) -> tuple[Any, Any]:
        """(CLIP tower, linear head on its class token), in evaluation mode; kept in the folder, if one is given."""
        import torch
        from torch import nn
        from torch.nn import functional as F
        from transformers import CLIPVisionConfig, CLIPVisionModel

        from tessera.lab.fit import fit_rows, keep, restored
        from tessera.world.backgrounds import TINTS

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            tower = _transformer(CLIPVisionModel(CLIPVisionConfig(**self._shape())))
            head = nn.Linear(self.width, len(TINTS))
            model = nn.ModuleList([tower, head])

            def loss(pixels: Tensor, labels: Tensor) -> Tensor:
                return F.cross_entropy(head(tower(pixel_values=pixels).pooler_output), labels)

            if folder is None or not restored(model, folder):
                data = self.data("train", self.images, seed)
                fit_rows(model, loss, data, steps=self.steps, batch=self.batch, lr=self.lr, seed=seed)
                if folder is not None:
                    keep(model, folder)
        return tower.eval(), head.eval()

    def data(self, split: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """`tinted` scenes, shrunk, each at a random place of an image of mid grey [I, 3, side, side]; the tints' numbers [I]."""
        import torch
        from torch.nn import functional as F

        pixels, labels = tinted(64, split, count, seed)
        made = pixels.new_zeros(count, 3, self.side, self.side)
        places = torch.randint(self.side - self.scene + 1, (count, 2), generator=torch.Generator().manual_seed(seed)).tolist()
        small = F.interpolate(pixels, (self.scene, self.scene), mode="area")
        for image, scene, (x, y) in zip(made, small, places, strict=True):
            image[:, y : y + self.scene, x : x + self.scene] = scene
        return made, labels

    def accuracy(self, tower: Any, head: Any, arm: Use, seed: int) -> float:
        """Of one seed's test scenes."""
        import torch

        settings = dict(arm.options)
        keep, choice, fuse = settings.pop("keep"), settings.pop("choice", "class"), settings.pop("fuse", True)
        if settings or choice not in ("class", "random"):
            raise TesseraError(f"tower_dropping knows keep, fuse and choice='class' or 'random', not {dict(arm.options)}.")
        pixels, labels = self.data("test", self.tested, seed)
        with torch.no_grad(), self._dropping(tower, keep, fuse, seed if choice == "random" else None) as plugged:
            said = torch.cat([head(plugged(pixel_values=x).pooler_output) for x in pixels.split(64)]).argmax(-1)
        return float((said == labels).double().mean())

    @contextmanager
    def _dropping(self, tower: Any, keep: float, fuse: bool, seed: int | None) -> Iterator[Any]:
        """The tower in a host, with the part plugged in.

        seed: of the random choice; None: the class token's
        """
        import torch

        from tessera import registry
        from tessera.hosts.plug import attach
        from tessera.hosts.zoo import tiny

        evit: Any = registry.get("tokens", "evit").target

        class RandomChoice(evit):
            """The same part with the class token's scores given to patches at random."""

            chance = torch.Generator().manual_seed(seed or 0)

            def rank(self, score: Tensor) -> Tensor:
                return score.gather(1, torch.rand(score.shape, generator=self.chance).argsort(1))

        host = tiny("llava", vision_config=self._shape()).model
        own: Any = host.get_submodule("model.vision_tower")
        _transformer(own).load_state_dict(tower.state_dict())
        part = (evit if seed is None else RandomChoice)(evit.Config(keep=keep, blocks=self.blocks, fuse=fuse))
        with attach(host).plug(part):
            yield own

    def _shape(self) -> dict[str, int]:
        """Of the tower, as transformers writes it."""
        return {
            "hidden_size": self.width, "intermediate_size": 3 * self.width, "num_hidden_layers": self.depth,
            "num_attention_heads": self.heads, "image_size": self.side, "patch_size": self.patch,
        }  # fmt: skip

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """A tiny tower after three steps: what its class token says of some images, whole and with fewer patches."""
        import torch

        from tessera.lab.behaviour import summary

        micro = cls(patch=16, width=16, depth=2, heads=2, blocks=(0,), images=8, tested=8, steps=3, batch=4)
        tower, head = micro.trained(0)
        pixels, _ = micro.data("test", 8, 0)
        found = {}
        for name, keep, seed in (("whole", 1.0, None), ("half", 0.5, None), ("random half", 0.5, 0)):
            with torch.no_grad(), micro._dropping(tower, keep, True, seed) as plugged:
                found[name] = summary(head(plugged(pixel_values=pixels).pooler_output))
        return found


def _transformer(made: Any) -> Any:
    """The transformer of a CLIP tower, which releases of transformers differ in wrapping."""
    return getattr(made, "vision_model", made)


def tinted(side: int, split: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Images [I, 3, side, side] of one tinted thing each, and the tints' numbers [I]."""
    import numpy as np
    import torch

    from tessera.data.dense import to_pixels
    from tessera.world import World
    from tessera.world.backgrounds import TINTS

    world = World(split=split, kinds={"scene": 1.0}, things=(1, 1), width=side, height=side)
    images: list[Any] = []
    labels: list[int] = []
    index = APART * seed
    while len(images) < count:
        sample = world[index]
        index += 1
        frame = sample.frames[0]
        if len(frame.things) == 1 and not frame.signs and (tint := frame.things[0].tint) is not None:
            images.append(np.asarray(sample.images()[0]))
            labels.append(TINTS.index(tint))
    return to_pixels(images), torch.tensor(labels)
