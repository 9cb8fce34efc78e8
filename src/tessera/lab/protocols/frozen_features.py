"""A head is trained on features of frozen towers: accuracy with a fusion of encoders, or with a wrapper around one.

Seeds choose the scenes of training and of the test, the starting weights and the order of the data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tessera.errors import TesseraError
from tessera.lab.experiment import Arm, Build
from tessera.lab.outcomes import Outcomes, per_seed
from tessera.lab.protocols.base import APART, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit
    from tessera.lab.places import Seen


@dataclass(frozen=True, slots=True, kw_only=True)
class FrozenFeatures(Protocol):
    """An `experts` part merges layers of frozen towers, place by place, and one linear layer per ability reads it.

    towers: reference models; world: of the scenes; images, tested: of a seed; steps, places: of training and in each step; lr.

    Arms: `Build(name, experts={"kind": ...}, settings={"towers": (0, 1), "layers": "own" | "mixed"})`: towers that take part, and
    whether all layers but each tower's last come from another place ("mixed").
    Metrics: category and tint of a place's thing, character at it, box (share of boxes with an intersection over union of 0.5).
    """

    name: ClassVar[str] = "frozen_features"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8, 12)
    arms: ClassVar[tuple[type[Arm], ...]] = (Build,)

    towers: tuple[str, ...] = ("object-expert", "reading-expert")
    world: Mapping[str, Any] = field(default_factory=lambda: {"kinds": {"scene": 0.6, "text": 0.4}, "things": (4, 12)})
    images: int = 120
    tested: int = 60
    steps: int = 150
    places: int = 512
    lr: float = 3e-3

    def models(self) -> tuple[str, ...]:
        """The towers' models."""
        return self.towers

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """One training for each seed."""
        used, _ = _merging(arm)
        towers = [lab.reference(self.towers[k])[0].encoder for k in used]
        runs = [self.trained(towers, arm, seed) for seed in range(first, first + count)]
        return per_seed({what: [run[what] for run in runs] for what in runs[0]})

    def trained(self, towers: list[Any], arm: Arm, seed: int) -> dict[str, float]:
        """Metrics of one seed's test scenes."""
        from tessera.lab.places import look
        from tessera.world import World

        _, mixed = _merging(arm)
        seen = []
        for split, size in (("train", self.images), ("test", self.tested)):
            world: Any = World(**{"split": split, **self.world})
            seen.append(labelled(look(towers, [world[APART * seed + i] for i in range(size)], layers=True)))
        if mixed:
            seen = [_mixed(part, seed) for part in seen]
        return self._read(seen[0], seen[1], arm, seed)

    def _read(self, train: Seen, test: Seen, arm: Arm, seed: int) -> dict[str, float]:
        import torch
        from torch import nn
        from torch.nn import functional as F

        from tessera.lab.fit import descend
        from tessera.lab.places import categories, characters, overlap
        from tessera.world.backgrounds import TINTS

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            part = _experts(arm, train)
            sizes = {"category": len(categories()), "tint": len(TINTS), "character": characters(), "box": 4}
            heads = nn.ModuleDict({what: nn.Linear(part.width, size) for what, size in sizes.items()})

            def loss_of(order: torch.Generator) -> Tensor:
                rows = torch.randint(len(train.category), (self.places,), generator=order)
                x = _merged(part, train, rows)
                losses = []
                for what in ("category", "tint", "character"):
                    wanted = getattr(train, what)[rows]
                    if bool((wanted >= 0).any()):
                        losses.append(F.cross_entropy(heads[what](x), wanted, ignore_index=-100))
                things = train.category[rows] >= 0
                losses.append(5 * (F.softplus(heads["box"](x[things])) - train.box[rows][things]).abs().sum() / (4 * len(rows)))
                return torch.stack(losses).sum()

            descend([*part.parameters(), *heads.parameters()], loss_of, self.steps, lr=self.lr, seed=seed)
            with torch.no_grad():
                x = _merged(part, test, torch.arange(len(test.category)))
                scores = {}
                for what in ("category", "tint", "character"):
                    wanted = getattr(test, what)
                    scores[what] = float((heads[what](x).argmax(-1) == wanted)[wanted >= 0].float().mean())
                things = test.category >= 0
                scores["box"] = float((overlap(F.softplus(heads["box"](x[things])), test.box[things]) >= 0.5).float().mean())
        return scores

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Two small towers of random weights merged over a few scenes."""
        micro = cls(images=4, tested=4, steps=3, places=16)
        towers = [tiny_tower(seed) for seed in (0, 1)]
        found = {}
        for layers in ("own", "mixed"):
            arm = Build(layers, {"layers": layers}, experts={"kind": "comm"})
            found.update({f"{layers}: {what}": [value] for what, value in micro.trained(towers, arm, 0).items()})
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class SmallThings(Protocol):
    """A linear layer names the category of a small thing from the one token in which its centre lies, behind a `pixels` part.

    tower: a reference model; shrink: how many times smaller than the board of twice the tower's image size the scene is drawn, on
    grey; images, tested: scenes of a seed; things: in each scene.

    Arms: `Build(name, pixels={"kind": "s2", "scales": (1, 2)})`. The same boards for all arms. Metric: accuracy.
    """

    name: ClassVar[str] = "small_things"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8, 12)
    arms: ClassVar[tuple[type[Arm], ...]] = (Build,)

    tower: str = "object-expert"
    shrink: int = 2
    images: int = 100
    tested: int = 60
    things: tuple[int, int] = (3, 3)

    def models(self) -> tuple[str, ...]:
        """The tower's model."""
        return (self.tower,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """One probe for each seed."""
        encoder = lab.reference(self.tower)[0].encoder
        return per_seed({"accuracy": [self.probed(encoder, arm, seed) for seed in range(first, first + count)]})

    def probed(self, encoder: Any, arm: Arm, seed: int) -> float:
        """Accuracy of one seed's probe."""
        from tessera.lab.probe import probe_accuracy

        train = self._tokens(encoder, arm, "train", self.images, seed)
        return probe_accuracy(*train, *self._tokens(encoder, arm, "test", self.tested, seed))

    def _tokens(self, encoder: Any, arm: Arm, split: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
        """Tokens [T, D] in which the centres of things lie, and the things' categories [T]."""
        import numpy as np
        import torch
        from torch.nn import functional as F

        from tessera.data.dense import to_pixels
        from tessera.world import World
        from tessera.world.concepts import by_category

        part = _part("pixels", arm)
        size, (rows, columns), kinds = int(encoder.image_size), encoder.grid, sorted(by_category("base"))
        side, small = 2 * size, 2 * size // self.shrink
        edge = (side - small) // 2
        world = World(split=split, kinds={"scene": 1.0}, things=self.things)
        tokens: list[Tensor] = []
        labels: list[int] = []
        wanted = part.image_size(size)
        for start in range(0, count, 25):
            samples = [world[APART * seed + i] for i in range(start, min(start + 25, count))]
            boards = np.full((len(samples), side, side, 3), 128, np.uint8)
            for board, sample in zip(boards, samples, strict=True):
                board[edge : edge + small, edge : edge + small] = np.asarray(sample.drawings(size=(small, small))[0].image)
            pixels = to_pixels(list(boards))
            if wanted != side:
                pixels = F.interpolate(pixels, size=(wanted, wanted), mode="bicubic", antialias=True)
            with torch.no_grad():
                features = part(lambda v: (encoder(v),), pixels, size, encoder.grid)[0]
            for image, sample in zip(features, samples, strict=True):
                for thing in sample.truth():
                    x0, y0, x1, y1 = thing.box
                    x, y = ((edge + small * centre) / side for centre in ((x0 + x1) / 2, (y0 + y1) / 2))
                    tokens.append(image[int(y * rows) * columns + int(x * columns)])
                    labels.append(kinds.index(thing.category))
        return torch.stack(tokens), torch.tensor(labels)

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """A small tower of random weights: what the probe reads, and how well."""
        import torch

        from tessera.lab.behaviour import summary

        micro, tower = cls(images=6, tested=6), tiny_tower(0)
        found: dict[str, list[float] | str] = {}
        for scales in ((1,), (1, 2)):
            arm = Build("scales", pixels={"kind": "s2", "scales": scales})
            tokens, labels = micro._tokens(tower, arm, "test", 4, 0)
            found[f"tokens at {scales}"] = summary(tokens)
            found[f"labels at {scales}"] = labels.to(torch.float64).tolist()
        found["accuracy"] = [micro.probed(tower, Build("one", pixels={"kind": "s2", "scales": (1,)}), 0)]
        return found


def tiny_tower(seed: int) -> Any:
    """A tower of random weights for 112 pixels, 14 x 14 places and width 24."""
    import torch

    from tessera.models.parts import create

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {"kind": "conv_vit", "image_size": 112, "patch_size": 8, "width": 24, "depth": 2, "heads": 2}
        made: Any = create("encoders", options, "encoder")
    return made.eval()


def labelled(seen: Seen) -> Seen:
    """The places that have a label, as images of one place."""
    from dataclasses import replace

    keep = (seen.category >= 0) | (seen.character >= 0)
    return replace(
        seen,
        samples=[],
        features=[f[keep][:, None] for f in seen.features],
        layers=[tuple(layer[keep][:, None] for layer in own) for own in seen.layers],
        **{name: getattr(seen, name)[keep] for name in ("category", "tint", "box", "character")},
    )


def _mixed(seen: Seen, seed: int) -> Seen:
    """All layers but each tower's last belong to other places."""
    from dataclasses import replace

    import torch

    order = torch.randperm(len(seen.category), generator=torch.Generator().manual_seed(seed))
    return replace(seen, layers=[(*(layer[order] for layer in own[:-1]), own[-1]) for own in seen.layers])


def _merging(arm: Arm) -> tuple[tuple[int, ...], bool]:
    """(towers that take part, whether their lower layers are those of other places)."""
    assert isinstance(arm, Build)
    settings = dict(arm.settings)
    used, layers = settings.pop("towers", (0, 1)), settings.pop("layers", "own")
    if settings or layers not in ("own", "mixed"):
        raise TesseraError(f"frozen_features knows towers=(0, 1) and layers='own' or 'mixed', not {dict(arm.settings)}.")
    return tuple(used), layers == "mixed"


def _part(socket: str, arm: Arm, *arguments: Any) -> Any:
    from tessera import registry
    from tessera.config import build

    assert isinstance(arm, Build)
    options = dict(arm.sockets[socket])
    target = registry.get(socket, options.pop("kind")).target
    return target(build(target.Config, options, socket), *arguments)


def _experts(arm: Arm, seen: Seen) -> Any:
    widths, levels = [f.shape[-1] for f in seen.features], [len(own) for own in seen.layers]
    return _part("experts", arm, widths, [(1, 1)] * len(widths), levels)


def _merged(part: Any, seen: Seen, rows: Tensor) -> Tensor:
    """What the part makes of some places, [P, D]."""
    from tessera.nn.tokens import from_grid

    sets = []
    for features, own in zip(seen.features, seen.layers, strict=True):
        tokens = from_grid(features[rows], (1, 1))
        tokens.levels = tuple(layer[rows] for layer in own)
        sets.append(tokens)
    found: Tensor = part(sets).features[:, 0]
    return found
