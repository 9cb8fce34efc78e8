"""Intriguing properties: what a vision-language model loses when order, parts or layers of its visual input are disturbed.

Source: Lee et al., "Intriguing Properties of Large Language and Vision Models", 2024, arXiv:2410.04751. Accuracy is measured
again after visual tokens are put into random order (all of them, inside groups, or whole groups), after the picture's patches
are, and after patches are dropped at random, the salient ones first, or the plain ones first. The alignment of visual tokens
with text is the share of nearest neighbours that both spaces have in common. The importance of a layer, or of a block of
tokens, is what noise in it costs. The paper finds that order hardly matters to what it tried, that the lower quarter of the
layers matters most, and that training on instructions costs alignment.

Deviations: the authors' code was not published, and where the paper leaves the exact rule open it is this one. Noise in a layer
is added to what the layer adds to its input, as strong as that is, so that a layer that does nothing has importance 0;
importance is the relative rise of the loss on right answers, which tells layers apart that accuracy does not. Noise in a block
of tokens is as strong as the tokens. Salient is where neighbouring pixels differ most, in place of a self-supervised model's
attention. The probe of regenerated figures of mathematics is left out. Tokens are disturbed in Tessera's composed models;
patches and layers in any host.

Shapes: features of an image [n, E]; loss per layer; a picture is cut into g x g patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from tessera.config import config
from tessera.errors import UserError
from tessera.evaluation.answering import Generates, Row, generator, is_ours
from tessera.evaluation.harness import ask
from tessera.evaluation.intervals import Interval, paired_bootstrap
from tessera.evaluation.items import EvaluationConfig, Item, draw
from tessera.evaluation.probe import Probe, ProbeResult
from tessera.evaluation.scoring import score
from tessera.registry import part
from tessera.world import WorldConfig

Look: TypeAlias = Literal[
    "tokens", "within", "between", "foreign", "patches", "drop", "salient", "plain", "blocks", "layers", "alignment"
]
Order: TypeAlias = Literal["tokens", "within", "between"]


def order(n: int, groups: int, how: Order, rng: torch.Generator) -> Tensor:
    """A permutation of n tokens in raster order: of all, within each of `groups` equal stretches, or of the stretches [n]."""
    if how == "tokens":
        return torch.randperm(n, generator=rng)
    stretches = torch.arange(n).tensor_split(min(groups, n))
    if how == "within":
        return torch.cat([s[torch.randperm(len(s), generator=rng)] for s in stretches])
    return torch.cat([stretches[i] for i in torch.randperm(len(stretches), generator=rng).tolist()])


def patch_boxes(image: Image.Image, grid: int) -> list[tuple[int, int, int, int]]:
    """The pixels of g x g patches in raster order."""
    xs = [round(i * image.width / grid) for i in range(grid + 1)]
    ys = [round(i * image.height / grid) for i in range(grid + 1)]
    return [(xs[c], ys[r], xs[c + 1], ys[r + 1]) for r in range(grid) for c in range(grid)]


def shuffle_patches(image: Image.Image, grid: int, rng: torch.Generator) -> Image.Image:
    """The picture with its patches in random order."""
    boxes = patch_boxes(image, grid)
    made = image.copy()
    for box, other in zip(boxes, torch.randperm(len(boxes), generator=rng).tolist(), strict=True):
        size = (box[2] - box[0], box[3] - box[1])
        made.paste(image.crop(boxes[other]).resize(size), box[:2])
    return made


def drop_patches(image: Image.Image, grid: int, share: float, which: str, rng: torch.Generator) -> Image.Image:
    """The picture with a share of its patches in its mean colour: at random ("drop"), "salient" or "plain" ones first."""
    boxes = patch_boxes(image, grid)
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64)
    contrast = [float(pixels[y0:y1, x0:x1].std((0, 1)).mean()) for x0, y0, x1, y1 in boxes]
    ranked = torch.randperm(len(boxes), generator=rng).tolist()
    if which != "drop":
        ranked.sort(key=lambda i: contrast[i], reverse=which == "salient")
    made = image.convert("RGB")
    mean = tuple(int(v) for v in pixels.mean((0, 1)).round())
    for i in ranked[: round(share * len(boxes))]:
        made.paste(mean, boxes[i])
    return made


def mutual_knn(a: Tensor, b: Tensor, k: int) -> Tensor:
    """[N, D], [N, E] of the same N things -> [N], the share of the k nearest neighbours by cosine that both spaces agree on.

    Source: Huh et al., "The Platonic Representation Hypothesis", 2024.
    """
    near = []
    for space in (a, b):
        unit = F.normalize(space.double() - space.double().mean(0), dim=-1)
        likeness = (unit @ unit.T).fill_diagonal_(-torch.inf)
        near.append(torch.zeros_like(likeness, dtype=torch.bool).scatter_(1, likeness.topk(k, dim=1).indices, True))
    return (near[0] & near[1]).sum(1) / k


@contextmanager
def disturbed_layer(layer: torch.nn.Module, how: Literal["noise", "skip"], scale: float, rng: torch.Generator) -> Iterator[None]:
    """While it lasts the layer's own contribution is noisy, by `scale` of its size per token, or left out."""

    def change(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        before = args[0] if args else kwargs["hidden_states"]
        after = output[0] if isinstance(output, tuple) else output
        added = after - before
        if how == "skip":
            changed = before
        else:
            noise = torch.randn(added.shape, generator=rng).to(added)
            changed = after + scale * added.pow(2).mean(-1, keepdim=True).sqrt() * noise
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = layer.register_forward_hook(change, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


class Tokens:
    """Answers like a composed model whose image features are changed before its language model reads them."""

    def __init__(self, model: Any, processor: Any, change: Callable[[list[Tensor]], list[Tensor]]) -> None:
        from tessera.generation.generate import Generator

        self.model, self.processor, self.change = model, processor, change
        self.generator = Generator(model, processor)

    def answer_batch(self, rows: Sequence[Row], max_new_tokens: int) -> Sequence[Sequence[Any]]:
        """See `Generates`; all images of the rows are changed together."""
        images = [image for row, _ in rows for image in row]
        found = iter(self.change(list(features(self.model, self.processor, images))) if images else [])
        made: list[tuple[Any, Sequence[str]]] = [
            (torch.stack([next(found) for _ in row]) if len(row) else [], questions) for row, questions in rows
        ]
        return self.generator.answer_batch(made, max_new_tokens)


class AlteredPictures:
    """Answers like a model to whose pictures something was done."""

    def __init__(self, answers: Generates, change: Callable[[Image.Image], Image.Image]) -> None:
        self.answers, self.change = answers, change

    def answer_batch(self, rows: Sequence[Row], max_new_tokens: int) -> Sequence[Sequence[Any]]:
        """See `Generates`."""
        made = [([self.change(image) for image in images], questions) for images, questions in rows]
        return self.answers.answer_batch(made, max_new_tokens)


def features(model: Any, processor: Any, images: Sequence[Image.Image]) -> Tensor:
    """What a composed model's language model reads of images, [M, n, E]. Raises `UserError` for another model."""
    if not is_ours(model):
        raise UserError(f"{type(model).__name__} is no composed model of Tessera: look at its patches or layers instead.")
    pixels = processor.image_processor(list(images), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        found: Tensor = model.get_image_features(pixels.to(model.device))
    return found


@part("intriguing_properties", socket="probes", catalog=117)
class IntriguingProperties(Probe):
    """Accuracy, loss and alignment under disturbance."""

    @config
    class Config:
        """looks: what is disturbed: order of all "tokens", "within" or "between" groups, tokens of a "foreign" picture; order
        of "patches"; "drop" of patches, "salient" or "plain" first; noise in "blocks" of tokens or in "layers"; and
        "alignment". types, n, world: the questions. groups: of tokens. grid: patches per side. shares: of patches that are
        dropped. noise: strength, relative to what it is added to. pictures: for alignment, of which `neighbours` are compared.
        seed: of everything random."""

        looks: tuple[Look, ...] = ("tokens", "patches", "layers")
        types: tuple[str, ...] = ()
        n: int = 400
        world: WorldConfig | None = None
        groups: int = 7
        grid: int = 7
        shares: tuple[float, ...] = (0.25, 0.5, 0.75)
        noise: float = 1.0
        pictures: int = 200
        neighbours: int = 10
        seed: int = 0

        def validate_ranges(self) -> None:
            if min(self.n, self.groups, self.grid, self.neighbours) < 1 or self.pictures <= self.neighbours:
                raise ValueError("n, groups, grid and neighbours are at least 1, and there are more pictures than neighbours.")
            if self.noise < 0 or not all(0 <= s <= 1 for s in self.shares):
                raise ValueError("noise is at least 0, shares are from 0 to 1.")

    def __init__(self, config: Config) -> None:
        self.config = config

    def run(self, model: Any, processor: Any) -> ProbeResult:
        """Numbers: "accuracy", and for every look its drop in accuracy, intact minus disturbed, on the same questions.
        Profiles: by share, block or layer. See `Probe`."""
        c = self.config
        numbers: dict[str, Interval] = {}
        profile: dict[str, tuple[float, ...]] = {}
        items = self.items(model)
        whole: list[list[int]] = []
        if set(c.looks) - {"layers", "alignment"}:
            whole = self.right(model, processor, items)
            numbers["accuracy"] = paired_bootstrap(whole, [[0] * len(r) for r in whole])
        for look in c.looks:
            rng = torch.Generator().manual_seed(c.seed)
            if look == "layers":
                profile["layers"] = self.layers(model, processor, items)
                continue
            if look == "alignment":
                numbers["alignment"], numbers["alignment by chance"] = self.alignment(model, processor)
                continue
            drops = [
                paired_bootstrap(whole, self.right(model, processor, items, answers))
                for answers in self._disturbed(model, processor, look, rng)
            ]
            if len(drops) == 1:
                numbers[look] = drops[0]
            else:
                profile[look] = tuple(d.value for d in drops)
        return ProbeResult(numbers=numbers, profile=profile, n=sum(len(i.questions) for i in items))

    def items(self, model: Any) -> list[Item]:
        """The questions."""
        size = getattr(model, "image_size", None)
        world = self.config.world or WorldConfig(split="test")
        if isinstance(size, int) and self.config.world is None:
            world = replace(world, width=size, height=size)
        return draw(EvaluationConfig(world=world, types=self.config.types, n=self.config.n, seed=self.config.seed))

    def right(self, model: Any, processor: Any, items: Sequence[Item], answers: Generates | None = None) -> list[list[int]]:
        """Per item 1 or 0 for every question."""
        said = ask(model, processor, items, answers=answers)
        return [[int(score(q, t).right) for q, t in zip(i.questions, s, strict=True)] for i, s in zip(items, said, strict=True)]

    def layers(
        self, model: Any, processor: Any, items: Sequence[Item], how: Literal["noise", "skip"] = "noise"
    ) -> tuple[float, ...]:
        """Relative rise of the loss on right answers for each decoder layer disturbed by itself."""
        from tessera.hosts.plug import attach

        asked = [(i.sample.images(), q.text, q.answer) for i in items for q in i.questions[:1]]
        intact = _loss(model, processor, asked)
        found = []
        for layer in attach(model).architecture.layers:
            rng = torch.Generator().manual_seed(self.config.seed)
            with disturbed_layer(layer, how, self.config.noise, rng):
                found.append(_loss(model, processor, asked) / intact - 1)
        return tuple(found)

    def alignment(self, model: Any, processor: Any) -> tuple[Interval, Interval]:
        """Mutual nearest neighbours of pictures' mean tokens and captions' mean embeddings, and the same with captions mixed
        up."""
        from tessera.world import World

        c = self.config
        world = World(replace(c.world or WorldConfig(split="test"), kinds={"scene": 1.0}, things=(1, 2)))
        samples = [world[i] for i in range(c.pictures)]
        seen = torch.cat([features(model, processor, s.images()).mean(1) for s in samples])
        with torch.no_grad():
            ids = [processor.tokenizer(s.captions()["short"], return_tensors="pt")["input_ids"][0] for s in samples]
            read = torch.stack([model.get_input_embeddings()(i.to(model.device)).mean(0) for i in ids])
        mixed = read[torch.randperm(len(read), generator=torch.Generator().manual_seed(c.seed))]
        return _interval(mutual_knn(seen, read, c.neighbours)), _interval(mutual_knn(seen, mixed, c.neighbours))

    def _disturbed(self, model: Any, processor: Any, look: Look, rng: torch.Generator) -> Iterator[Generates]:
        """What answers in the model's place: one, or one for every share or block."""
        c = self.config
        if look in ("patches", "drop", "salient", "plain"):
            plain = generator(model, processor)
            if look == "patches":
                yield AlteredPictures(plain, lambda image: shuffle_patches(image, c.grid, rng))
                return
            for part_ in c.shares:
                yield AlteredPictures(plain, lambda image, s=part_: drop_patches(image, c.grid, s, look, rng))  # type: ignore[misc]
        elif look == "foreign":
            yield Tokens(model, processor, lambda found: [*found[1:], *found[:1]])
        elif look == "blocks":
            for block in range(c.groups):
                yield Tokens(model, processor, lambda found, b=block: [self._noisy(f, b, rng) for f in found])  # type: ignore[misc]
        elif look == "tokens" or look == "within" or look == "between":
            yield Tokens(model, processor, lambda found: [f[order(len(f), c.groups, look, rng)] for f in found])

    def _noisy(self, tokens: Tensor, block: int, rng: torch.Generator) -> Tensor:
        chosen = torch.arange(len(tokens)).tensor_split(self.config.groups)[block]
        made = tokens.clone()
        noise = torch.randn((len(chosen), tokens.shape[-1]), generator=rng).to(tokens)
        made[chosen] += self.config.noise * tokens[chosen].pow(2).mean(-1, keepdim=True).sqrt() * noise
        return made


def _loss(model: Any, processor: Any, asked: Sequence[tuple[Sequence[Image.Image], str, str]]) -> float:
    """Mean over questions of the cross-entropy per token of the right answer."""
    total = 0.0
    for images, question, answer in asked:
        content = [*({"type": "image"} for _ in images), {"type": "text", "text": question}]
        messages = [{"role": "user", "content": content}]
        before = processor.apply_chat_template(messages, add_generation_prompt=True)
        # The answer follows the prompt as text, whatever the template adds behind it.
        full = processor(images=list(images) or None, text=[before + answer], return_tensors="pt").to(model.device)
        head = processor(images=list(images) or None, text=[before], return_tensors="pt")["input_ids"].shape[1]
        with torch.no_grad():
            logits = model(**full).logits[0, head - 1 : -1].float()
        total += float(F.cross_entropy(logits, full["input_ids"][0, head:]))
    return total / max(1, len(asked))


def _interval(values: Tensor) -> Interval:
    mean, error = float(values.mean()), float(values.std() / len(values) ** 0.5)
    return Interval(mean, mean - 1.96 * error, mean + 1.96 * error)
