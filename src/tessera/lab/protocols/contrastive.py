"""Dual encoders are trained on captions over a frozen image tower: zero-shot accuracy, retrieval of captions, pointing.

Text tower and contrastive part begin with random weights. Seeds choose the classes, the scenes of training and of the test, the
starting weights and the order of the data. Every image goes through the tower once, and all arms work on the same features.
Imports torch inside functions only.

Shapes: I images, N patches, D channels of the tower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar

from tessera.errors import TesseraError
from tessera.lab.captioned import caption, different, scenes
from tessera.lab.experiment import Arm, Use
from tessera.lab.outcomes import Outcomes, per_seed
from tessera.lab.protocols.base import Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit
    from tessera.models.contrast import Embedded
    from tessera.world.dataset import Sample

PROMPTS = ("A picture of {a} {name}.", *(f"{{A}} {{name}} on a {colour} background." for colour in ("white", "blue", "green")))
"""Ways to name a class, the plain one first; all are forms that captions have."""
LONGEST = 48
"""Tokens that a text may have."""
POOL = 2
"""Side of the squares of the tower's patches that are averaged."""
READS = ("prompt", "prompts", "shots", "mean", "other name")


@dataclass(frozen=True, slots=True)
class TowerScenes:
    """The scenes of one seed by name, and what the tower makes of them: features [I, N, D], on a raster of `grid`.

    chosen: the classes' concepts; train: captioned; single: of one thing each; shots: of one thing, the classes in turn; pairs:
    of two or three things, with captions that all differ.
    """

    chosen: list[int]
    samples: Mapping[str, list[Sample]]
    features: Mapping[str, Tensor]
    grid: tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Contrastive(Protocol):
    """tower: a reference model, whose encoder stays as it is; of: pool of the classes, "base" or "novel" (names that the tower
    was never trained to tell apart); classes: concepts of a seed, of which all its scenes are made; images: captioned ones to
    train on, of one to three things; steps of `batch` pairs; lr: peak rate of AdamW; named: test images of one thing; found: test
    images of several; shots: labelled images of every class, for a linear classifier; width, heads: of a text tower of one layer.

    Arms: `Use(part, captions="own" | "shuffled", read=..., **options)`. Captions that are shuffled belong to other images. read:

        prompt      a class is named by one prompt
        prompts     by the mean of several
        shots       by a linear classifier on the embeddings of `shots` images of each class
        mean        every image and text is compared by the mean of its vectors
        other name  pointing with the name of another thing of the scene

    One training for each seed, part and kind of captions serves all reads. Metrics: accuracy, share of single things that get
    their name; caption and image, share of images whose own caption is the best of all, and of captions whose own image is;
    pointing, share of things in whose box the patch lies that is most like the thing's name.
    """

    name: ClassVar[str] = "contrastive"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "seed"
    looks: ClassVar[tuple[int, ...]] = (5, 8, 12)
    arms: ClassVar[tuple[type[Arm], ...]] = (Use,)

    tower: str = "object-expert"
    of: str = "novel"
    classes: int = 32
    images: int = 480
    steps: int = 150
    batch: int = 64
    lr: float = 2e-3
    named: int = 128
    found: int = 96
    shots: int = 4
    width: int = 64
    heads: int = 2

    def models(self) -> tuple[str, ...]:
        """The tower's model."""
        return (self.tower,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """One dual encoder for each seed."""
        assert isinstance(arm, Use)
        options = dict(arm.options)
        captions, read = options.pop("captions", "own"), options.pop("read", "prompt")
        if captions not in ("own", "shuffled") or read not in READS:
            raise TesseraError(f"contrastive knows captions own or shuffled and read {', '.join(READS)}: {arm} asks for others.")
        part = {"kind": arm.part, **options}
        depends = [f"protocol {self.name}", "core world", f"model {self.tower}", f"part contrastive/{arm.part}"]
        rows = []
        for seed in range(first, first + count):
            key = [self.plain(), "dual encoder", part, captions, seed]
            rows.append(lab.kept(key, depends, partial(self._kept, lab, part, captions == "shuffled", seed))[read])
        return per_seed({metric: [row[metric] for row in rows] for metric in rows[0]})

    def _kept(self, lab: Lab, part: Mapping[str, Any], shuffled: bool, seed: int) -> dict[str, dict[str, float]]:
        encoder = lab.reference(self.tower)[0].encoder
        known = [lab.behaviour(f"protocol {self.name}"), lab.behaviour("core world"), lab.weights(self.tower)]
        return self.row(self.scenes(encoder, seed, lab.folder("contrastive", self.plain(), seed, known)), part, shuffled, seed)

    def scenes(self, encoder: Any, seed: int, folder: Any = None) -> TowerScenes:
        """The seed's scenes; features are kept in the folder, if one is given."""
        from safetensors.torch import load_file, save_file

        from tessera.io import atomic_write
        from tessera.world.concepts import pool
        from tessera.world.rng import Rng

        chosen = Rng("contrastive", seed).pick(pool(self.of), self.classes)
        side = int(encoder.image_size)
        in_turn = scenes("val", (1, 1), chosen, side, seed, turn=True)
        samples = {
            "train": list(islice(scenes("train", (1, 3), chosen, side, seed), self.images)),
            "single": list(islice(scenes("test", (1, 1), chosen, side, seed), self.named)),
            "shots": list(islice(in_turn, self.shots * self.classes)),
            "pairs": different(scenes("test", (2, 3), chosen, side, seed), self.found),
        }
        path = None if folder is None else folder / "features.safetensors"
        if path is not None and path.exists():
            features = load_file(path)
        else:
            features = {name: seen(encoder, own) for name, own in samples.items()}
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(path) as temporary:
                    save_file(features, temporary)
        return TowerScenes(chosen, samples, features, (encoder.grid[0] // POOL, encoder.grid[1] // POOL))

    def row(self, made: TowerScenes, part: Mapping[str, Any], shuffled: bool, seed: int) -> dict[str, dict[str, float]]:
        """What one trained dual encoder finds, by all reads."""
        import torch

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model, processor = dual(part, made.features["train"].shape[-1], self.width, self.heads)
            self._train(model, processor, made, shuffled, seed)
        return self._found(model, processor, made)

    def _train(self, model: Any, processor: Any, made: TowerScenes, shuffled: bool, seed: int) -> None:
        import torch

        from tessera.lab.fit import fit_rows

        ids, there = _texts(processor, [caption(s) for s in made.samples["train"]])
        own = torch.arange(len(ids))
        if shuffled:
            own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(seed))]

        def loss(features: Tensor, rows: Tensor) -> Tensor:
            longest = int(there[rows].sum(1).max())
            texts = model.embed_texts(ids[rows, :longest], there[rows, :longest])
            found: Tensor = model.contrast.loss(model.contrast.images(features.float()).unit(), texts, model.scale)[0]
            return found

        fit_rows(model, loss, (made.features["train"], own), steps=self.steps, batch=self.batch, lr=self.lr, seed=seed)

    def _found(self, model: Any, processor: Any, made: TowerScenes) -> dict[str, dict[str, float]]:
        import torch

        from tessera.lab.probe import linear_probe
        from tessera.models.few_shot import prompt
        from tessera.world.concepts import concepts

        names = [concepts()[c].name for c in made.chosen]
        with torch.no_grad():
            few, images, pairs = (
                model.contrast.images(made.features[name].float()).unit() for name in ("shots", "single", "pairs")
            )
            prompts = [_words(model, processor, [prompt(template, name) for name in names]) for template in PROMPTS]
            texts = _words(model, processor, [caption(s) for s in made.samples["pairs"]])
        train = few.pooled()
        shots = linear_probe(train, torch.arange(len(train)) % self.classes, images.pooled(), self.classes)
        with torch.no_grad():
            one = model.contrast.classify(images, prompts[:1])
            named = {
                "prompt": one,
                "prompts": model.contrast.classify(images, prompts),
                "shots": shots,
                "mean": _mean(images) @ _mean(prompts[0]).t(),
                "other name": one,
            }
            own, mean = model.contrast.similarity(pairs, texts), _mean(pairs) @ _mean(texts).t()
        wanted = torch.tensor([made.chosen.index(s.frames[0].things[0].concept) for s in made.samples["single"]])
        every = torch.arange(len(made.samples["pairs"]))
        found = {}
        for read, logits in named.items():
            per_image, per_text = (mean, mean.t()) if read == "mean" else own
            found[read] = {
                "accuracy": _right(logits, wanted),
                "caption": _right(per_image, every),
                "image": _right(per_text, every),
                "pointing": pointing(model, processor, made, other=read == "other name"),
            }
        return found

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """A tiny tower and a few steps over it, by all reads, and what the tower sees."""
        from tessera.lab.behaviour import summary
        from tessera.lab.protocols.frozen_features import tiny_tower

        micro = cls(classes=4, images=24, steps=6, batch=8, named=12, found=8, shots=1, width=24)
        made = micro.scenes(tiny_tower(0), 0)
        found: dict[str, list[float] | str] = {f"features, {name}": summary(value) for name, value in made.features.items()}
        found["captions"] = " ".join(caption(s) for s in made.samples["pairs"])
        for shuffled in (False, True):
            for read, row in micro.row(made, {"kind": "clip"}, shuffled, 0).items():
                found[f"{read}, shuffled" if shuffled else read] = list(row.values())
        return found


def seen(encoder: Any, samples: Sequence[Sample]) -> Tensor:
    """What a tower makes of first frames, as float16 [I, N, D], over squares of POOL x POOL patches."""
    import numpy as np
    import torch
    from torch.nn import functional as F

    from tessera.data.dense import to_pixels

    found = []
    with torch.no_grad():
        for start in range(0, len(samples), 32):
            pixels = to_pixels([np.asarray(s.images()[0]) for s in samples[start : start + 32]])
            raster = encoder(pixels).transpose(1, 2).unflatten(2, encoder.grid)
            found.append(F.avg_pool2d(raster, POOL).flatten(2).transpose(1, 2).half())
    return torch.cat(found).contiguous()


def dual(part: Mapping[str, Any], width: int, text_width: int, heads: int) -> tuple[Any, Any]:
    """A contrastive part over features of `width` channels and a text tower, in a model of random weights whose own image tower
    is not used; its processor, with the world's vocabulary."""
    from tessera.models.configuration import TesseraDualEncoderConfig
    from tessera.models.dual_encoder import TesseraDualEncoder
    from tessera.models.image_processing import TesseraImageProcessor
    from tessera.models.processing import TesseraDualProcessor
    from tessera.models.tokenizer import build_tokenizer
    from tessera.world.vocabulary import words

    tokenizer = build_tokenizer(words())
    config = TesseraDualEncoderConfig(
        encoder={"kind": "conv_vit", "image_size": 16, "patch_size": 8, "width": width, "depth": 1, "heads": 1, "mlp_ratio": 1},
        contrastive=dict(part),
        projection_dim=text_width,
        pool_heads=heads,
        vocab_size=len(tokenizer),
        max_position_embeddings=LONGEST,
        text_width=text_width,
        text_depth=1,
        text_heads=heads,
    )
    model: Any = TesseraDualEncoder(config)
    model.encoder.requires_grad_(False)
    return model, TesseraDualProcessor(TesseraImageProcessor(16), tokenizer, LONGEST)


def pointing(model: Any, processor: Any, made: TowerScenes, *, other: bool = False) -> float:
    """Share of things, of scenes with several that come once, in whose box the centre of the patch lies that is most like the
    thing's name; `other`: most like the name of another thing of the scene. 0 without such scenes."""
    import torch

    from tessera.models.few_shot import prompt
    from tessera.nn.tokens import grid_positions

    x, y = grid_positions(*made.grid).unbind(1)
    named: dict[str, Tensor] = {}
    hits: list[bool] = []
    with torch.no_grad():
        for sample, features in zip(made.samples["pairs"], made.features["pairs"].float(), strict=True):
            truth = sample.truth()
            things = [t for t in truth if sum(o.concept == t.concept for o in truth) == 1]
            if len(things) < 2:
                continue
            # Patch by patch: what the part makes of an image that has this patch alone.
            patches = model.contrast.images(features[:, None]).unit().vectors[:, 0]
            for place, thing in enumerate(things):
                name = things[place - 1].name if other else thing.name
                if name not in named:
                    named[name] = _name(model, processor, prompt(PROMPTS[0], name), name)
                best = int((patches @ named[name].t()).mean(1).argmax())
                left, top, right, bottom = thing.box
                hits.append(bool(left <= x[best] <= right and top <= y[best] <= bottom))
    return sum(hits) / len(hits) if hits else 0.0


def _name(model: Any, processor: Any, text: str, name: str) -> Tensor:
    """Unit vectors [T, E] of the tokens of the text that spell the name, or the text's one vector [1, E]."""
    vectors: Tensor = _words(model, processor, [text]).vectors[0]
    if len(vectors) == 1:
        return vectors
    ids, wanted = (processor.tokenizer(t, add_special_tokens=a)["input_ids"] for t, a in ((text, True), (name, False)))
    for start in range(len(ids) - len(wanted) + 1):
        if ids[start : start + len(wanted)] == wanted:
            return vectors[start : start + len(wanted)]
    raise TesseraError(f"{name!r} does not stand in {text!r}.")


def _texts(processor: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    made = processor(text=list(texts), return_tensors="pt")
    return made["input_ids"], made["attention_mask"]


def _words(model: Any, processor: Any, texts: Sequence[str]) -> Embedded:
    import torch

    with torch.no_grad():
        found: Embedded = model.embed_texts(*_texts(processor, texts))
    return found


def _mean(embedded: Embedded) -> Tensor:
    from torch.nn import functional as F

    return F.normalize(embedded.pooled(), dim=-1)


def _right(logits: Tensor, wanted: Tensor) -> float:
    return float((logits.argmax(1) == wanted).double().mean())
