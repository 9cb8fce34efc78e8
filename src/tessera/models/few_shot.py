"""The contract of socket `few_shot`: a frozen dual encoder and a few labelled images -> a classifier.

    dual = FrozenDual(model, processor)
    classifier = part.fit(dual, ["dog", "cat"], shots, validation, seed=0)
    classifier.logits(pixels)                       # [I, C]

A part never changes the dual encoder; what it learns is in the classifier. `FrozenDual` is all that a part sees of the model:
Tessera's dual encoder, or one of transformers that is built like CLIP.

Shapes: I images, C classes, T tokens of a text, W channels of the text tower, E channels of the shared space.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.errors import UserError
from tessera.world.questions.phrasing import article, capital

PROMPT = "A picture of {a} {name}."
"""How a class is named where nothing else is said; {a} and {A} are its article."""
_BATCH = 64


def prompt(template: str, name: str) -> str:
    """A template with a name and its article."""
    return template.format(a=article(name), A=capital(article(name)), name=name)


@dataclass(slots=True)
class Shots:
    """Labelled images: pixels [I, 3, S, S] as the model takes them, labels [I] int64 into the names of the classes."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def check(self, classes: int) -> None:
        """Raises `UserError` unless there is a label of a known class for every image."""
        if len(self.pixels) != len(self.labels) or not len(self.labels):
            raise UserError(
                f"labelled images need one label each; there are {len(self.pixels)} images, {len(self.labels)} labels."
            )
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= classes:
            raise UserError(f"labels go from 0 to {classes - 1} for {classes} classes; got {low if low < 0 else high}.")


class FrozenDual:
    """A dual encoder as few-shot parts see it: its weights take no gradient, its vectors have length 1.

    Tensors come from and go to the CPU, wherever the model is.

    scale: what cosines are multiplied with; width: W; max_length: tokens that a text may have.
    """

    def __init__(self, model: Any, processor: Any, prompts: Sequence[str] = (PROMPT,)) -> None:
        """prompts: templates of the hand-written prompts. Raises `UserError` for a model that is no dual encoder."""
        self.model, self.processor, self.prompts = model.eval(), processor, tuple(prompts)
        self._own = getattr(model.config, "model_type", "") == "tessera_dual_encoder"
        if self._own:
            self._table, self.scale = model.text.embed, float(model.scale.detach())
            self.max_length = int(model.config.max_position_embeddings)
        elif hasattr(model, "text_model") and hasattr(model, "logit_scale") and hasattr(model, "get_image_features"):
            self._table = model.text_model.embeddings.token_embedding
            self.scale = float(model.logit_scale.detach().exp())
            self.max_length = int(model.config.text_config.max_position_embeddings)
        else:
            raise UserError(
                f"few-shot parts adapt dual encoders (Tessera's, or one built like CLIP), not {type(model).__name__}."
            )
        self.width = int(self._table.weight.shape[1])

    @property
    def spread(self) -> float:
        """Standard deviation of the token embeddings."""
        return float(self._table.weight.detach().float().std())

    @torch.no_grad()
    def images(self, pixels: Tensor) -> Tensor:
        """[I, 3, S, S] -> [I, E]."""
        blocks = [block.to(self._table.weight.device) for block in pixels.split(_BATCH)]
        found = [_pooled(self.model.get_image_features(pixel_values=block)).cpu() for block in blocks]
        return F.normalize(torch.cat(found).float(), dim=-1)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """X texts -> [X, E]."""
        ids = [self.ids(text) for text in texts]
        rows, there = padded(ids)
        found = [self.encode(self.embed(r), r, t) for r, t in zip(rows.split(_BATCH), there.split(_BATCH), strict=True)]
        return torch.cat(found)

    def classes(self, names: Sequence[str]) -> Tensor:
        """The zero-shot classifier [C, E]: per class the mean of its hand-written prompts' vectors, of length 1 again."""
        found = torch.stack([self.texts([prompt(template, name) for name in names]) for template in self.prompts])
        return F.normalize(found.mean(0), dim=-1)

    def ids(self, text: str, special: bool = True) -> list[int]:
        """Token ids of one text, not padded; `special`: with the tokens that the model's texts begin and end with."""
        return list(self.processor.tokenizer(text, add_special_tokens=special)["input_ids"])

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [X, T] -> their embeddings [X, T, W], without positions."""
        return self._table(ids.to(self._table.weight.device)).float().cpu()

    def encode(self, embeds: Tensor, ids: Tensor, there: Tensor) -> Tensor:
        """Token embeddings [X, T, W] -> [X, E]; gradients reach `embeds` and nothing else.

        ids [X, T]: the tokens whose places the embeddings take (the end of a text is found by its id); there [X, T] bool.
        Raises `UserError` for texts that are too long.
        """
        if embeds.shape[1] > self.max_length:
            raise UserError(
                f"a prompt has {embeds.shape[1]} tokens, this model's texts at most {self.max_length}: fewer vectors."
            )
        weight = self._table.weight
        embeds, ids, there = embeds.to(weight), ids.to(weight.device), there.to(weight.device)
        with frozen(self.model):
            if self._own:
                found = self.model.contrast.texts(*self.model.text(None, there, embeds)).pooled()
            else:
                hook = self._table.register_forward_hook(lambda module, args, out: embeds)
                try:
                    found = _pooled(self.model.get_text_features(input_ids=ids, attention_mask=there.long()))
                finally:
                    hook.remove()
        return F.normalize(found.float(), dim=-1).cpu()


class frozen:
    """Within it no parameter of the model asks for a gradient."""

    def __init__(self, model: Any) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]

    def __enter__(self) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(False)

    def __exit__(self, *error: object) -> None:
        for parameter in self._parameters:
            parameter.requires_grad_(True)


class Classifier:
    """What a part makes: names of the classes, and their logits for images; `settings` names what the part chose by itself."""

    def __init__(self, dual: FrozenDual, names: Sequence[str], of_features: Callable[[Tensor], Tensor]) -> None:
        self.dual, self.names, self._of_features = dual, list(names), of_features
        self.settings: dict[str, float] = {}

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        """[I, 3, S, S] -> [I, C]."""
        return self._of_features(self.dual.images(pixels))

    @torch.no_grad()
    def of_features(self, features: Tensor) -> Tensor:
        """`logits` of images that were embedded before: [I, E] of length 1 -> [I, C]."""
        return self._of_features(features)


class FewShot(ABC):
    """A frozen dual encoder and a few labelled images -> a classifier."""

    Config: Any

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def fit(
        self, dual: FrozenDual, names: Sequence[str], shots: Shots, validation: Shots | None = None, *, seed: int = 0
    ) -> Classifier:
        """A classifier of `names` from a few images of each; `validation`: more, for parts that choose a setting by them.

        Raises `UserError` for labels that do not fit, or what the part misses.
        """


def zero_shot(dual: FrozenDual, names: Sequence[str]) -> Classifier:
    """The zero-shot classifier: cosines with the hand-written prompts."""
    weights = dual.classes(names)
    return Classifier(dual, names, lambda features: dual.scale * features @ weights.t())


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids padded at the end with zeros [X, T], and which are there [X, T] bool."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    return ids, torch.arange(longest) < torch.tensor([len(row) for row in rows])[:, None]


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Every image cut at random (half to all of its area, sides 3:4 to 4:3), resized to its size, flipped half of the time."""
    count = len(pixels)
    area = torch.rand(count, generator=generator) * 0.5 + 0.5
    aspect = torch.exp((torch.rand(count, generator=generator) * 2 - 1) * math.log(4 / 3))
    wide, tall = ((area * aspect).sqrt().clamp(max=1.0), (area / aspect).sqrt().clamp(max=1.0))
    flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = wide * flip, tall
    theta[:, 0, 2] = (torch.rand(count, generator=generator) * 2 - 1) * (1 - wide)
    theta[:, 1, 2] = (torch.rand(count, generator=generator) * 2 - 1) * (1 - tall)
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False).to(pixels.dtype)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def views(dual: FrozenDual, shots: Shots, count: int, seed: int) -> Tensor:
    """Features [count, I, E] of `count` augmented copies of the shots; 0 copies: of the images as they are, once."""
    if count == 0:
        return dual.images(shots.pixels)[None]
    generator = torch.Generator().manual_seed(seed)
    return torch.stack([dual.images(augmented(shots.pixels, generator)) for _ in range(count)])


def _pooled(features: Any) -> Tensor:
    """Transformers returns the vector alone or, later, as `pooler_output`."""
    return features if isinstance(features, Tensor) else features.pooler_output
