"""Few-shot tasks on the world: scenes or crops of one thing, a few labelled ones of every class, others to test on.

Shots and validation images come from training scenes in one artwork style, test images from test scenes in the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from PIL import Image

from tessera.errors import UserError
from tessera.models.few_shot import Classifier, FrozenDual, Shots
from tessera.world import World
from tessera.world.concepts import concepts, held_out, pool
from tessera.world.dataset import Sample
from tessera.world.rng import Rng
from tessera.world.scene import STYLES

SHOTS = (1, 2, 4, 8, 16)
View = Literal["scenes", "crops"]
VIEWS: tuple[View, ...] = ("scenes", "crops")
_MARGIN = 0.1
_STRIDE = 1_000_000


@dataclass(slots=True)
class Task:
    """Classes and their labelled images.

    names: of the classes; shots: in rounds, one image of every class after the other, so that the first K rounds are the K-shot
    task; validation, test: images of which none is among the shots.
    """

    names: list[str]
    shots: Shots
    validation: Shots
    test: Shots

    def few(self, k: int) -> Shots:
        """K images of every class."""
        count = k * len(self.names)
        if not k >= 1 or count > len(self.shots):
            raise UserError(f"this task has {len(self.shots) // len(self.names)} images of every class; {k} were asked for.")
        return Shots(self.shots.pixels[:count], self.shots.labels[:count])


def task(
    processor: Any,
    *,
    of: str = "base",
    view: View = "scenes",
    classes: int = 20,
    shots: int = 16,
    validation: int = 4,
    test: int = 15,
    seed: int = 0,
    styles: tuple[str, str] = STYLES,
    size: int = 112,
) -> Task:
    """`classes` concepts of pool `of`, drawn by the seed, with so many images of each.

    view: whole scenes, or the thing cut out with some margin. styles: of shots and validation, of the test images.
    """
    known = pool(of)
    if not 2 <= classes <= len(known):
        raise UserError(f"a task of pool {of!r} has 2 to {len(known)} classes, not {classes}.")
    chosen = Rng("few-shot", of, seed).pick(known, classes)
    learn = World(split="train", pool=of, kinds={"scene": 1.0}, things=(1, 1), width=size, height=size)
    asked = World(split="test", pool=of, kinds={"scene": 1.0}, things=(1, 1), width=size, height=size)
    first = _empty_stages(learn, (shots + validation) * classes, seed)
    second = _empty_stages(asked, test * classes, seed)
    seen = _images(first, chosen, styles[0], view)
    new = _images(second, chosen, styles[1], view)
    labels = torch.arange(classes)
    cut = shots * classes
    pixels = _pixels(processor, seen)
    return Task(
        names=[concepts()[c].name for c in chosen],
        shots=Shots(pixels[:cut], labels.repeat(shots)),
        validation=Shots(pixels[cut:], labels.repeat(validation)),
        test=Shots(_pixels(processor, new), labels.repeat(test)),
    )


def accuracy(classifier: Classifier, features: torch.Tensor, labels: torch.Tensor) -> float:
    """Share of images, embedded before, whose class has the highest logit."""
    return float((classifier.of_features(features).argmax(1) == labels).float().mean())


def shuffled(labels: torch.Tensor, seed: int) -> torch.Tensor:
    """The labels dealt out anew: what cannot teach anything."""
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def frozen(model: Any, processor: Any, prompts: Sequence[str] = ()) -> FrozenDual:
    """The dual encoder as few-shot parts see it, with hand-written prompts in the form of the world's captions by default."""
    return FrozenDual(model, processor, prompts) if prompts else FrozenDual(model, processor)


def _empty_stages(world: World, n: int, seed: int) -> list[Sample]:
    """Scenes of one thing and no sign: where something stands, how large, turned how, on what."""
    found: list[Sample] = []
    index = seed * _STRIDE
    while len(found) < n:
        sample = world[index]
        index += 1
        if len(sample.frames[0].things) == 1 and not sample.frames[0].signs:
            found.append(sample)
    return found


def _images(stages: Sequence[Sample], chosen: Sequence[int], style: str, view: View) -> list[Image.Image]:
    """The classes in turn, each on the next stage."""
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
    half = max((box[2] - box[0]) * width, (box[3] - box[1]) * height) * (0.5 + _MARGIN)
    left, top, right, bottom = max(0, x - half), max(0, y - half), min(width, x + half), min(height, y + half)
    return image.crop((round(left), round(top), round(right), round(bottom)))


def _pixels(processor: Any, images: Sequence[Image.Image]) -> torch.Tensor:
    return torch.cat(
        [processor(images=list(images[i : i + 64]), return_tensors="pt")["pixel_values"] for i in range(0, len(images), 64)]
    )


def tiny_duals(prompts: Sequence[str]) -> dict[str, FrozenDual]:
    """Dual encoders with random weights for images of 16 pixels: Tessera's, and transformers' CLIP with its original shape."""
    from transformers import CLIPConfig, CLIPModel

    from tessera.models.configuration import TesseraDualEncoderConfig
    from tessera.models.dual_encoder import TesseraDualEncoder
    from tessera.models.image_processing import TesseraImageProcessor
    from tessera.models.processing import TesseraDualProcessor
    from tessera.models.tokenizer import build_tokenizer

    torch.manual_seed(0)
    tokenizer = build_tokenizer(["a", "picture", "of", "dog", "fire", "engine", "cat", "X"])
    processor = TesseraDualProcessor(TesseraImageProcessor(16), tokenizer, 24)
    ours = TesseraDualEncoder(
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
    # What begins and ends a text, as CLIP's own tokenizer has it.
    framed = build_tokenizer(["a", "picture", "of", "dog", "fire", "engine", "cat", "X"])
    framed.backend_tokenizer.post_processor = _frame(framed)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokenizer), "max_position_embeddings": 24, "pad_token_id": 0, "bos_token_id": 1}
    theirs = CLIPModel(
        CLIPConfig(
            text_config={**tower, **text, "eos_token_id": len(tokenizer) - 1},
            vision_config={**tower, "image_size": 16, "patch_size": 8},
            projection_dim=24,
        )
    )
    return {
        "Tessera": FrozenDual(ours, processor, prompts),
        "CLIP of transformers": FrozenDual(theirs, TesseraDualProcessor(TesseraImageProcessor(16), framed, 24), prompts),
    }


def _frame(tokenizer: Any) -> Any:
    from tokenizers.processors import TemplateProcessing

    last = len(tokenizer) - 1
    begin, end = tokenizer.bos_token, tokenizer.convert_ids_to_tokens(last)
    return TemplateProcessing(single=f"{begin} $A {end}", special_tokens=[(begin, 1), (end, last)])
