"""Accuracy of a quantised tower, and of several fine-tuned models merged into one.

Seeds choose the scenes, the images to calibrate on, what is planted, the starting weights and the order of the data.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tessera.errors import TesseraError
from tessera.lab.experiment import Arm, Use, Vary
from tessera.lab.outcomes import Outcomes, per_seed
from tessera.lab.protocols.base import APART, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantising(Protocol):
    """A tower is quantised after training; behind every norm some channels were made larger, and what reads them smaller.

    tower: a reference model that labels patches with things; channels: how many are made larger, `gain` times; calibrated,
    tested: images of a seed.

    Arms: `Use(part, ...)` of socket compression with its options, or `Vary("float")`. Metric: accuracy of patches.
    """

    name: ClassVar[str] = "quantising"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8, 12)
    arms: ClassVar[tuple[type[Arm], ...]] = (Use, Vary)

    tower: str = "object-expert"
    channels: int = 8
    gain: float = 30.0
    calibrated: int = 32
    tested: int = 64

    def models(self) -> tuple[str, ...]:
        """The tower's model."""
        return (self.tower,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """One calibration for each seed."""
        expert, _ = lab.reference(self.tower)
        return per_seed({"accuracy": [self._run(expert, arm, seed) for seed in range(first, first + count)]})

    def _run(self, expert: Any, arm: Arm, seed: int) -> float:
        import torch

        from tessera.data.dense import BACKGROUND, DenseData, object_labels, patch_accuracy
        from tessera.world import World

        worlds = {split: World(split=split, kinds={"scene": 1.0}) for split in ("train", "test")}
        patch = int(expert.encoder.image_size) // expert.encoder.grid[0]
        train, test = (DenseData([worlds[split]], "objects", patch) for split in ("train", "test"))
        begin = APART * seed
        inputs = {"pixel_values": train.collate(range(begin, begin + self.calibrated))["pixel_values"]}
        batches = [test.collate(range(i, min(i + 32, begin + self.tested))) for i in range(begin, begin + self.tested, 32)]
        model = copy.deepcopy(expert)
        planted(model, inputs, self.channels, self.gain, seed)
        if isinstance(arm, Use):
            model = _part(arm.part, arm.options).compress(model, inputs)
        elif arm.label != "float":
            raise TesseraError(f"quantising knows Vary('float'), not {arm.label!r}.")
        with torch.no_grad():
            return patch_accuracy(model, batches, object_labels().index(BACKGROUND))

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Outliers in a tiny tower of random weights, which change nothing until the tower is quantised."""
        import torch
        from torch import nn

        from tessera.lab.behaviour import summary
        from tessera.models.parts import create

        options = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 2}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model: nn.Module = create("encoders", options, "encoder")
        model.eval()
        inputs = {"pixel_values": torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))}
        planted(model, inputs, 3, 30.0, 0)
        with torch.no_grad():
            made = _part("repq_vit", {"norms": "layer", "weight_bits": 8, "activation_bits": 8}).compress(model, inputs)
            return {"planted": summary(model(**inputs)), "gains": summary(_gains(model)), "8 bits": summary(made(**inputs))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Souping(Protocol):
    """A small head over a frozen tower's mean features is trained once, fine-tuned several times from there, and merged.

    tower: a reference model with an `encoder`; width: of the head's hidden layer; started, tuned, held, tested: images of a seed;
    styles: of the drawings that are tuned on and, shifted, of those that are not; runs: (learning rate, label smoothing) of each.

    Arms: `Use("model_soups", kind=..., starts="one" | "own")`: merged; with "own" starts every run began from other random
    weights. `Vary("best run" | "ensemble")`. Metrics: accuracy; shifted.
    """

    name: ClassVar[str] = "souping"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8, 12)
    arms: ClassVar[tuple[type[Arm], ...]] = (Use, Vary)

    tower: str = "nano-clip"
    width: int = 256
    started: int = 200
    tuned: int = 500
    held: int = 150
    tested: int = 200
    styles: tuple[str, str] = ("noto", "twemoji")
    runs: tuple[tuple[float, float], ...] = ((3e-4, 0.0), (1e-3, 0.0), (3e-3, 0.0), (3e-4, 0.1), (1e-3, 0.1), (3e-3, 0.1))
    steps: int = 100

    def models(self) -> tuple[str, ...]:
        """The tower's model."""
        return (self.tower,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """All runs of each seed, and what the arm makes of them."""
        encoder = lab.reference(self.tower)[0].encoder
        rows = [self._run(encoder, arm, seed) for seed in range(first, first + count)]
        return per_seed({name: [row[name] for row in rows] for name in rows[0]})

    def _run(self, encoder: Any, arm: Arm, seed: int) -> dict[str, float]:
        import torch

        from tessera.world.concepts import by_category

        own, other = self.styles
        start, tune = (
            _named(encoder, "train", self.started, 2 * seed, own),
            _named(encoder, "train", self.tuned, 2 * seed + 1, own),
        )
        held = _named(encoder, "val", self.held, seed, own)
        tests = {
            "accuracy": _named(encoder, "test", self.tested, seed, own),
            "shifted": _named(encoder, "test", self.tested, seed, other),
        }
        settings = dict(arm.options) if isinstance(arm, Use) else {}
        starts = settings.pop("starts", "one")
        if starts not in ("one", "own"):
            raise TesseraError(f"souping knows starts='one' or 'own', not {starts!r}.")
        models = []
        with torch.random.fork_rng():
            for index, (lr, smoothing) in enumerate(self.runs):
                torch.manual_seed(seed if starts == "one" else 1000 * (seed + 1) + index)
                model = _head(start[0].shape[1], self.width, len(by_category("all")))
                _tune(model, start, lr=3e-3, smoothing=0.0, steps=self.steps, order=seed)
                _tune(model, tune, lr=lr, smoothing=smoothing, steps=self.steps, order=100 * (seed + 1) + index)
                models.append(model)

        def score(model: Any) -> float:
            return _right(model(held[0]), held[1])

        with torch.no_grad():
            if isinstance(arm, Use):
                merged = _part(arm.part, settings).merge(models, score)
                return {name: _right(merged(x), y) for name, (x, y) in tests.items()}
            if arm.label == "ensemble":
                return {
                    name: _right(torch.stack([m(x).softmax(-1) for m in models]).mean(0), y) for name, (x, y) in tests.items()
                }
            if arm.label == "best run":
                best = max(models, key=score)
                return {name: _right(best(x), y) for name, (x, y) in tests.items()}
        raise TesseraError(f"souping knows Vary('best run') and Vary('ensemble'), not {arm.label!r}.")

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """All arms over a tiny tower of random weights."""
        import torch

        from tessera.models.parts import create

        options = {"kind": "conv_vit", "image_size": 112, "patch_size": 16, "width": 24, "depth": 1, "heads": 2}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            tower: Any = create("encoders", options, "encoder")
        micro = cls(width=8, started=12, tuned=12, held=12, tested=24, runs=cls().runs[1:4], steps=20)
        arms = (
            Use("model_soups", kind="uniform"),
            Use("model_soups", kind="uniform", starts="own"),
            Vary("ensemble"),
            Vary("best run"),
        )
        rows = {arm.label: micro._run(tower.eval(), arm, 0) for arm in arms}
        return {f"{label}: {name}": [value] for label, row in rows.items() for name, value in row.items()}


def planted(model: Any, inputs: Mapping[str, Any], channels: int, gain: float, seed: int) -> None:
    """Makes some channels of every norm's output `gain` times larger and the weights that read them as much smaller, in place.

    The model computes the same as before."""
    import torch
    from torch import nn

    from tessera.nn.readers import norm_readers

    chance = torch.Generator().manual_seed(seed)
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    linear: set[nn.Module] = {m for m in model.modules() if isinstance(m, nn.Linear)}
    with torch.no_grad():
        for norm, layers in norm_readers(model, norms, linear, inputs).items():
            ratio = torch.ones_like(norm.weight)
            ratio[torch.randperm(len(ratio), generator=chance)[:channels]] = gain
            norm.weight.mul_(ratio)
            norm.bias.mul_(ratio)
            for layer in layers:
                layer.weight.div_(ratio)


def _gains(model: Any) -> Tensor:
    import torch
    from torch import nn

    return torch.cat([m.weight.detach() for m in model.modules() if isinstance(m, nn.LayerNorm)])


def _part(name: str, options: Mapping[str, Any]) -> Any:
    from tessera import registry
    from tessera.config import build

    target = registry.get("compression", name).target
    return target(build(target.Config, dict(options), name))


def _named(encoder: Any, split: str, count: int, place: int, style: str) -> tuple[Tensor, Tensor]:
    """Mean features [I, D] of images of one novel thing each, from a place in the world of its own, and categories [I]."""
    import numpy as np
    import torch

    from tessera.data.dense import to_pixels
    from tessera.world import World
    from tessera.world.concepts import by_category, concepts

    names = sorted(by_category("all"))
    world = World(split=split, kinds={"scene": 1.0}, things=(1, 1), pool="novel", styles=(style,))
    samples: list[Any] = []
    index = APART * place
    while len(samples) < count:
        sample = world[index]
        index += 1
        if sample.frames[0].things:
            samples.append(sample)
    labels = [names.index(concepts()[s.frames[0].things[0].concept].category) for s in samples]
    pixels = to_pixels([np.asarray(s.images()[0]) for s in samples])
    with torch.no_grad():
        features = torch.cat([encoder(x).mean(1) for x in pixels.split(64)]).float()
    return features, torch.tensor(labels)


def _head(width: int, hidden: int, classes: int) -> Any:
    """Features [I, D] -> logits [I, C]."""
    from torch import nn

    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, classes))


def _tune(
    model: Any, data: tuple[Tensor, Tensor], *, lr: float, smoothing: float, steps: int, order: int, batch: int = 32
) -> None:
    """Trains the head in place."""
    from torch.nn import functional as F

    from tessera.lab.fit import fit_rows

    def loss(features: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(model(features), labels, label_smoothing=smoothing)

    fit_rows(model, loss, data, steps=steps, batch=batch, lr=lr, seed=order)


def _right(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(-1) == labels).double().mean())
