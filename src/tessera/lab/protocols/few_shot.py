"""A frozen dual encoder and a few labelled images of every class: the accuracy of a part of socket `few_shot`.

Seeds draw the classes, the shots and the test images. Shots are drawn in one artwork style, test images in the other. Every image
is embedded once, and all arms work on the same features. Imports torch inside functions only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from tessera.errors import TesseraError
from tessera.lab.experiment import Arm, Use, Vary
from tessera.lab.outcomes import Outcomes, per_seed
from tessera.lab.protocols.base import APART, Protocol

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit
    from tessera.models.few_shot import FrozenDual
    from tessera.world import World
    from tessera.world.dataset import Sample

MARGIN = 0.1
"""What a crop shows around the thing, as a share of the thing's longer side."""


@dataclass(frozen=True, slots=True)
class FewShotTask:
    """Features of a seed's images, in rounds of one image of every class.

    names: of the C classes; shots [V, K C, E]: V augmented copies of K images of every class; known, test: of validation and test
    images [I, E].
    """

    names: list[str]
    shots: Tensor
    known: Tensor
    test: Tensor

    def plain(self) -> dict[str, Any]:
        """As JSON, to six digits."""

        def numbers(value: Tensor) -> Any:
            return [[round(x, 6) for x in row] for row in value.flatten(0, -2).tolist()]

        return {
            "names": self.names,
            "copies": len(self.shots),
            **{name: numbers(getattr(self, name)) for name in ("shots", "known", "test")},
        }

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> FewShotTask:
        """From `plain`."""
        import torch

        shots, known, test = (torch.tensor(value[name]) for name in ("shots", "known", "test"))
        return cls(value["names"], shots.unflatten(0, (value["copies"], -1)), known, test)


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShots(Protocol):
    """model: a reference dual encoder; of: the pool of the classes, "base" or "novel" (names that the text tower never learned);
    view: whole scenes, or the thing cut out; classes, shots, known, tested: classes, and images of each to learn from, to choose
    settings by, and to test on; copies: augmented ones of every shot, each of which counts as an image (0: the shot as it is).

    Arms: `Use(part, shots=16, labels="own" | "shuffled", **options)` and `Vary("written prompt")`, the zero-shot classifier.
    `tested="new"` in either: the second half of the classes has no images and is tested alone, by a part's `without_images`;
    `names="shifted"`: there every class gets the name of the seventh after it. Metric: accuracy.
    """

    name: ClassVar[str] = "few_shot"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8, 12)
    arms: ClassVar[tuple[type[Arm], ...]] = (Use, Vary)

    model: str = "nano-clip"
    of: str = "base"
    view: Literal["scenes", "crops"] = "crops"
    classes: int = 20
    shots: int = 16
    known: int = 4
    tested: int = 15
    copies: int = 1

    def models(self) -> tuple[str, ...]:
        """The dual encoder."""
        return (self.model,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """One classifier for each seed."""
        from tessera.models.few_shot import FrozenDual

        model, processor = lab.reference(self.model)
        dual = FrozenDual(model, processor)
        depends = [f"protocol {self.name}", "core world", f"model {self.model}"]
        found = []
        for seed in range(first, first + count):
            made = lab.kept([self.plain(), "features", seed], depends, partial(self._task, dual, processor, seed))
            found.append(self.accuracy(dual, FewShotTask.parse(made), arm, seed))
        return per_seed({"accuracy": found})

    def _task(self, dual: FrozenDual, processor: Any, seed: int) -> dict[str, Any]:
        return self.task(dual, processor, seed).plain()

    def accuracy(self, dual: FrozenDual, task: FewShotTask, arm: Arm, seed: int) -> float:
        """Share of the tested images that the arm's classifier names rightly."""
        import torch

        from tessera.models.few_shot import zero_shot

        options = _options(arm, self.shots)
        classes = len(task.names)
        old = classes // 2 if options.new else classes
        shot, known, right = (torch.arange(len(x)) % classes for x in (task.shots[0], task.known, task.test))
        few = (torch.arange(len(shot)) < options.shots * classes) & (shot < old)
        asked = right >= old if options.new else right >= 0
        names = task.names[old:] if options.new else task.names
        if options.part is None:
            made: Any = zero_shot(dual, names)
        else:
            labels = shot[few]
            if options.shuffled:
                labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
            part = _part(options.part, options.rest)
            shots, chosen = (task.shots[:, few], labels), (task.known[known < old], known[known < old])
            made = _fitted(part, dual, task.names[:old], shots, chosen, seed)
            if options.new:
                said = [*names[7:], *names[:7]] if options.shifted else names
                made = part.without_images(dual, said, shots[0], made.settings["mixture"])
        found = made.of_features(task.test[asked]).argmax(1)
        return float((found == right[asked] - (old if options.new else 0)).float().mean())

    def task(self, dual: FrozenDual, processor: Any, seed: int, size: int = 112) -> FewShotTask:
        """The features of a seed's images; `size`: of the scenes, in pixels."""
        import torch

        from tessera.models.few_shot import Shots, views
        from tessera.world import World
        from tessera.world.concepts import concepts, pool
        from tessera.world.rng import Rng
        from tessera.world.scene import STYLES

        chosen = Rng("few-shot", self.of, seed).pick(pool(self.of), self.classes)
        pixels = []
        for split, style, each in (("train", 0, self.shots + self.known), ("test", 1, self.tested)):
            world = World(split=split, pool=self.of, kinds={"scene": 1.0}, things=(1, 1), width=size, height=size)
            stages = _stages(world, each * self.classes, seed)
            images = _images(stages, chosen, STYLES[style], self.view)
            blocks = [images[i : i + 64] for i in range(0, len(images), 64)]
            pixels.append(torch.cat([processor(images=block, return_tensors="pt")["pixel_values"] for block in blocks]))
        cut = self.shots * self.classes
        shots = views(dual, Shots(pixels[0][:cut], torch.arange(cut)), self.copies, seed)
        return FewShotTask([concepts()[c].name for c in chosen], shots, dual.images(pixels[0][cut:]), dual.images(pixels[1]))

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """A random dual encoder: features of a few images, and the classifiers of three arms."""
        from tessera.lab.behaviour import summary

        dual = tiny_dual()
        micro = cls(classes=4, shots=2, known=1, tested=3, copies=1)
        task = micro.task(dual, dual.processor, 0, 64)
        found: dict[str, list[float] | str] = {"names": ", ".join(task.names)}
        found.update({name: summary(getattr(task, name)) for name in ("shots", "known", "test")})
        gda = {"shots": 2, "mixture": 1.0}
        for label, arm in (
            ("prompt", Vary("written prompt")),
            ("part", Use("gda_clip", **gda)),
            ("shuffled", Use("gda_clip", labels="shuffled", **gda)),
            ("new", Use("gda_clip", tested="new", near=2, **gda)),
        ):
            found[label] = [micro.accuracy(dual, task, arm, 0)]
        return found


@dataclass(frozen=True, slots=True)
class _Options:
    part: str | None
    shots: int
    shuffled: bool
    new: bool
    shifted: bool
    rest: Mapping[str, Any]


def _options(arm: Arm, most: int) -> _Options:
    """Settings of an arm, and what is left for the part. Raises `TesseraError` for a setting that is not known."""
    assert isinstance(arm, (Use, Vary))
    rest = dict(arm.options if isinstance(arm, Use) else arm.settings)
    shots, labels = rest.pop("shots", most), rest.pop("labels", "own")
    tested, names = rest.pop("tested", "own"), rest.pop("names", "own")
    if labels not in ("own", "shuffled") or tested not in ("own", "new") or names not in ("own", "shifted") or shots > most:
        raise TesseraError(
            f"few_shot knows up to {most} shots, labels own or shuffled, tested own or new: {arm} asks for others."
        )
    if isinstance(arm, Vary) and rest:
        raise TesseraError(f"the written prompt takes tested='new' alone, not {rest}.")
    part = arm.part if isinstance(arm, Use) else None
    return _Options(part, shots, labels == "shuffled", tested == "new", names == "shifted", rest)


def _part(name: str, options: Mapping[str, Any]) -> Any:
    from tessera import registry
    from tessera.config import build

    target = registry.get("few_shot", name).target
    return target(build(target.Config, {**options, "views": 0}, f"few_shot {name}"))


def _fitted(
    part: Any,
    dual: FrozenDual,
    names: Sequence[str],
    shots: tuple[Tensor, Tensor],
    known: tuple[Tensor, Tensor],
    seed: int,
) -> Any:
    """`part.fit` with features in the place of pixels: every copy of a shot is one image."""
    from tessera.models.few_shot import Shots

    kept = _Kept(dual)
    features, labels = shots[0].flatten(0, 1), shots[1].repeat(len(shots[0]))
    return part.fit(kept, names, Shots(features, labels), Shots(*known), seed=seed)


class _Kept:
    """A frozen dual encoder whose images were embedded before."""

    def __init__(self, dual: FrozenDual) -> None:
        self._dual = dual

    def __getattr__(self, name: str) -> Any:
        return getattr(self._dual, name)

    def images(self, features: Tensor) -> Tensor:
        """[I, E] as they are."""
        return features


def _stages(world: World, count: int, seed: int) -> list[Sample]:
    """Scenes of one thing and no sign: where something stands, how large, turned how, on what."""
    found: list[Sample] = []
    index = seed * APART
    while len(found) < count:
        sample = world[index]
        index += 1
        if len(sample.frames[0].things) == 1 and not sample.frames[0].signs:
            found.append(sample)
    return found


def _images(stages: Sequence[Sample], chosen: Sequence[int], style: str, view: str) -> list[Image.Image]:
    """The classes in turn, each on the next stage."""
    from dataclasses import replace

    from tessera.world.concepts import held_out
    from tessera.world.dataset import Sample
    from tessera.world.scene import STYLES

    made = []
    for place, stage in enumerate(stages):
        scene, concept = stage.frames[0], chosen[place % len(chosen)]
        thing = scene.things[0]
        tint = None if thing.tint is not None and held_out(concept, thing.tint) else thing.tint
        thing = replace(thing, concept=concept, style=STYLES.index(style), tint=tint)
        sample = Sample(stage.config, stage.index, "scene", (replace(scene, things=(thing,)),), (), stage.pool)
        image = sample.images()[0]
        made.append(_cut(image, sample.truth()[0].box) if view == "crops" else image)
    return made


def _cut(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """A square around the box with a margin, as far as the image goes."""
    width, height = image.size
    x, y = (box[0] + box[2]) / 2 * width, (box[1] + box[3]) / 2 * height
    half = max((box[2] - box[0]) * width, (box[3] - box[1]) * height) * (0.5 + MARGIN)
    left, top, right, bottom = max(0, x - half), max(0, y - half), min(width, x + half), min(height, y + half)
    return image.crop((round(left), round(top), round(right), round(bottom)))


def tiny_dual() -> FrozenDual:
    """A dual encoder of random weights for 16 pixels, with the world's vocabulary."""
    import torch

    from tessera.models.configuration import TesseraDualEncoderConfig
    from tessera.models.dual_encoder import TesseraDualEncoder
    from tessera.models.few_shot import FrozenDual
    from tessera.models.image_processing import TesseraImageProcessor
    from tessera.models.processing import TesseraDualProcessor
    from tessera.models.tokenizer import build_tokenizer
    from tessera.world.concepts import concepts

    words = sorted({word for concept in concepts() for word in concept.name.split()} | {"a", "A", "an", "An", "picture", "of"})
    tokenizer = build_tokenizer(words)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TesseraDualEncoder(
            TesseraDualEncoderConfig(
                encoder={"kind": "conv_vit", "image_size": 16, "width": 32, "depth": 1, "heads": 2},
                projection_dim=24,
                vocab_size=len(tokenizer),
                text_width=32,
                text_depth=2,
                text_heads=2,
                max_position_embeddings=24,
            )
        )
    return FrozenDual(model, TesseraDualProcessor(TesseraImageProcessor(16), tokenizer, 24))
