"""FILIP compares an image and a text token by token.

Source: Yao et al., "FILIP: Fine-grained Interactive Language-Image Pre-Training", 2021, arXiv:2111.07783. Every visual token
finds its best word, and the mean over the visual tokens is the similarity of the image to the text; every word finds its best
visual token, and the mean over the words is the similarity of the text to the image. The two differ, and both enter the
symmetric contrastive loss. There is no cross-attention, so token embeddings can be computed once and kept. Which patch a word
finds shows where it is.

Deviations: the selection of tokens before they are compared across the batch (`keep`, 25 % in the paper) is off by default, as
one process has nothing to communicate; special tokens of the text count as words.

Shapes: I images, N tokens of width D, X texts of T tokens, E channels of the shared space.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import initialization as init

from tessera.config import config
from tessera.lab.claim import Finding, claim
from tessera.models.contrast import Contrast, Embedded, contrastive_loss, gathered
from tessera.nn import initialise
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.lab.instruments import duals
    from tessera.lab.lab import Lab

_AT_ONCE = 1 << 25
"""Token pairs that are compared in one go where no gradient is kept."""


@part("filip", socket="contrastive", catalog=234)
class FILIP(Contrast):
    """All tokens as vectors, token-wise maximum similarity."""

    @config
    class Config:
        """keep: share of an image's and of a text's tokens that enter the loss, those with the highest similarity to any token of
        the process's own batch; 1: all."""

        keep: float = 1.0

        def validate_keep(self) -> None:
            if not 0 < self.keep <= 1:
                raise ValueError(f"keep is a share above 0, at most 1, not {self.keep}.")

    def __init__(self, config: Config, width: int, out_width: int, heads: int = 1) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, out_width, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """The projection keeps the variance of its input."""
        initialise.tree(self)
        init.normal_(self.project.weight, std=self.project.in_features**-0.5)

    def images(self, features: Tensor) -> Embedded:
        """[I, N, D] -> [I, N, E]."""
        vectors = self.project(self.norm(features))
        return Embedded(vectors, torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device))

    def texts(self, tokens: Tensor, there: Tensor) -> Embedded:
        """[X, T, E], [X, T] -> the same."""
        return Embedded(tokens, there)

    def similarity(self, images: Embedded, texts: Embedded) -> tuple[Tensor, Tensor]:
        """Mean over visual tokens of the best word [I, X], mean over words of the best visual token [X, I]."""
        pairs = max(1, images.there.shape[1] * texts.there.numel())
        step = len(images) if torch.is_grad_enabled() else max(1, _AT_ONCE // pairs)
        blocks = [late_interaction(images[i : i + step], texts) for i in range(0, max(1, len(images)), max(1, step))]
        return torch.cat([b[0] for b in blocks]), torch.cat([b[1] for b in blocks], dim=1)

    def loss(self, images: Embedded, texts: Embedded, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """As `Contrast.loss`, on the kept tokens; they are chosen before anything is gathered."""
        if self.config.keep < 1:
            images, texts = select(images, texts, self.config.keep)
        per_image, per_text = self(gathered(images), gathered(texts), scale)
        return contrastive_loss(per_image, per_text), per_image, per_text


def late_interaction(images: Embedded, texts: Embedded) -> tuple[Tensor, Tensor]:
    """Unit embeddings of I images and X texts -> [I, X], [X, I]."""
    cosine = _cosines(images, texts)
    best_word = _best(cosine, texts.there[None, :, None], 3)  # [I, X, N]
    best_patch = _best(cosine, images.there[:, None, :, None], 2)  # [I, X, T]
    return _mean(best_word, images.there[:, None]), _mean(best_patch, texts.there[None]).t()


def _best(cosine: Tensor, there: Tensor, axis: int) -> Tensor:
    """The largest cosine along an axis of what is there; -1 where nothing is."""
    if not bool(there.all()):
        cosine = cosine.masked_fill(~there, -1.0)
    return cosine.max(axis).values.float()


def select(images: Embedded, texts: Embedded, keep: float) -> tuple[Embedded, Embedded]:
    """Of every image and text the max(1, ceil(keep x count)) tokens that are most similar to any token on the other side."""
    with torch.no_grad():
        cosine = _cosines(images, texts)
        cosine = cosine.masked_fill(~(images.there[:, None, :, None] & texts.there[None, :, None]), -torch.inf)
        of_patch, of_word = cosine.amax((1, 3)), cosine.amax((0, 2))
    return _top(images, of_patch, keep), _top(texts, of_word, keep)


def alignment(image: Tensor, text: Tensor, there: Tensor) -> Tensor:
    """Unit tokens of one image [N, E] and one text [T, E], there [T] -> the word that every patch finds [N], int64."""
    return (image @ text.t()).masked_fill(~there, -torch.inf).argmax(1)


def _cosines(images: Embedded, texts: Embedded) -> Tensor:
    """[I, X, N, T]."""
    (count, tokens, width), (others, words, _) = images.vectors.shape, texts.vectors.shape
    flat = images.vectors.reshape(-1, width) @ texts.vectors.reshape(-1, width).t()
    return flat.view(count, tokens, others, words).transpose(1, 2)


def _mean(values: Tensor, there: Tensor) -> Tensor:
    """Mean over the last axis where `there`; 0 for nothing at all."""
    return values.masked_fill(~there, 0).sum(-1) / there.sum(-1).clamp_min(1)


def _top(embedded: Embedded, score: Tensor, keep: float) -> Embedded:
    wanted = (embedded.there.sum(1) * keep).ceil().long().clamp_min(1)
    most = int(wanted.max())
    places = score.topk(most, dim=1).indices
    vectors = embedded.vectors.gather(1, places[..., None].expand(-1, -1, embedded.vectors.shape[2]))
    there = torch.arange(most, device=places.device) < wanted[:, None]
    return Embedded(vectors, there & embedded.there.gather(1, places))


@claim("the similarity is that of the equations, token by token", kind="exact", paper="equations 4 and 5")
def equals_loops(lab: Lab) -> Finding:
    """Random tokens with padding on either side against three nested loops; scored alone and from kept embeddings."""
    lots = torch.Generator().manual_seed(0)
    part = FILIP(FILIP.Config(), 8, 6)
    images = Embedded(torch.randn(4, 7, 6, generator=lots), torch.rand(4, 7, generator=lots) > 0.2).unit()
    texts = Embedded(torch.randn(5, 9, 6, generator=lots), torch.rand(5, 9, generator=lots) > 0.4).unit()
    with torch.no_grad():
        per_image, per_text = part.similarity(images, texts)
        apart = [part.similarity(images[i : i + 1], texts) for i in range(4)]
        chosen = select(images, texts, 1.0)
        kept = part.similarity(*chosen)
    gap = kept_gap = alone = 0.0
    for i in range(4):
        for x in range(5):
            cosine = images.vectors[i][images.there[i]] @ texts.vectors[x][texts.there[x]].t()
            words = [max(float(c) for c in row) for row in cosine]
            patches = [max(float(c) for c in column) for column in cosine.t()]
            gap = max(gap, abs(sum(words) / len(words) - float(per_image[i, x])))
            gap = max(gap, abs(sum(patches) / len(patches) - float(per_text[x, i])))
            alone = max(alone, abs(float(apart[i][0][0, x] - per_image[i, x])), abs(float(apart[i][1][x, 0] - per_text[x, i])))
            kept_gap = max(kept_gap, abs(float(kept[0][i, x] - per_image[i, x])))
    apart_by = float((per_image - per_text.t()).abs().mean())
    return Finding(
        checks={
            "equal to the loops within 1e-6": gap < 1e-6,
            "image by image the same within 1e-6": alone < 1e-6,
            "keeping all tokens changes nothing": kept_gap < 1e-6,
            "the two directions differ": apart_by > 1e-3,
        },
        measured={"largest difference": gap, "alone": alone, "all kept": kept_gap, "mean difference of the directions": apart_by},
        shape="4 images of up to 7 tokens, 5 texts of up to 9",
    )


@claim(
    "finds captions of several things, and where each thing is, better than one vector does",
    kind="effect",
    paper="tables 2 and 3, figure 2",
)
def beats_one_vector(lab: Lab) -> Finding:
    """Heads and text towers trained from scratch over the shipped object expert, which stays as it is. FILIP and CLIP see the
    same batches of its tokens, averaged two by two, for the same steps. The caption of an image among 256, and whether the patch
    that is most like a name lies in the box of the thing. Controls: FILIP's own tokens as one mean vector; the patch that another
    thing's name finds."""
    from tessera.lab.instruments import duals
    from tessera.lab.lab import mean, spread

    things = {"kinds": {"scene": 1.0}, "things": (2, 4)}
    tower = lab.reference("object-expert")[0].encoder
    cells: dict[str, list[float]] = {}
    data: tuple[duals.Pairs, duals.Pairs] | None = None
    for seed in lab.seeds:
        made = {kind: duals.over(tower, {"kind": kind}, seed) for kind in ("filip", "clip")}
        processor = made["clip"][1]
        if data is None:
            train, test = duals.captioned(lab.world(split="train", **things), 1536), duals.captioned(lab.world(**things), 256)
            data = duals.pairs(tower, train, processor, 2), duals.pairs(tower, test, processor, 2)
        for kind, (model, _) in made.items():
            duals.train_heads(model, data[0], steps=300, seed=seed)
            images, texts = duals.paired(model, data[1])
            cells.setdefault(f"{kind}: caption", []).append(duals.caption_recall(model, images, texts)[0])
            cells.setdefault(f"{kind}: image", []).append(duals.caption_recall(model, images, texts)[1])
            right, other = _pointing(model, processor, data[1])
            cells.setdefault(f"{kind}: pointing", []).append(right)
            cells.setdefault(f"{kind}: pointing by another name", []).append(other)
            if kind == "filip":
                whole = [nn.functional.normalize(e.pooled(), dim=-1) for e in (images, texts)]
                found = (whole[0] @ whole[1].t()).argmax(1) == torch.arange(len(images))
                cells.setdefault("mean of its tokens: caption", []).append(float(found.float().mean()))
    assert data is not None
    boxes = [duals.inside(data[1].grid, box).float().mean().item() for s in data[1].samples for _, box in duals.things_once(s)]
    chance, value = mean(boxes), {cell: mean(values) for cell, values in cells.items()}
    return Finding(
        checks={
            "caption found 5 points more often than by one vector": value["filip: caption"] >= value["clip: caption"] + 0.05,
            "the patch of a name lies in its box twice as often as chance": value["filip: pointing"] >= 2 * chance,
            "and 15 points more often than by CLIP's patches": value["filip: pointing"] >= value["clip: pointing"] + 0.15,
            "its tokens as one mean vector find fewer captions": value["mean of its tokens: caption"] < value["filip: caption"],
            "another name finds the box less often": value["filip: pointing by another name"] < value["filip: pointing"],
        },
        measured={cell: v for cell, v in value.items() if cell.startswith("filip: ") and "another" not in cell},
        baseline={cell: v for cell, v in value.items() if cell.startswith("clip: ") and "another" not in cell}
        | {"pointing by chance": chance},
        control={cell: v for cell, v in value.items() if "another" in cell or cell.startswith("mean of")},
        seeds=lab.seeds,
        spread={cell: spread(values) for cell, values in cells.items()},
        note="Both learn over a tower that was trained to name every patch, which helps whoever reads patches one by one.",
    )


@claim(
    "images and texts are encoded apart, as cheaply as for one vector; fewer tokens cost less to compare",
    kind="cost",
    paper="sections 3.1 and 3.4",
)
def costs(lab: Lab) -> Finding:
    """FLOPs of encoding an image and a text for FILIP and for CLIP, of comparing all pairs of 64 with all tokens and with a
    quarter of them, and how much longer the former takes."""
    from tessera.lab.instruments import duals

    tower = lab.reference("object-expert")[0].encoder
    made = {kind: duals.over(tower, {"kind": kind}, 0) for kind in ("filip", "clip")}
    torch.manual_seed(0)
    pixels, ids = torch.randn(16, 3, tower.image_size, tower.image_size), torch.randint(5, 100, (16, 24))

    def encoding(kind: str) -> float:
        model = made[kind][0]
        return lab.flops(lambda: (model.embed_images(pixels), model.embed_texts(ids))) / len(pixels)

    alone = {kind: encoding(kind) for kind in made}
    filip: FILIP = made["filip"][0].pool
    many = Embedded(torch.randn(64, 196, 128), torch.ones(64, 196, dtype=torch.bool)).unit()
    words = Embedded(torch.randn(64, 24, 128), torch.ones(64, 24, dtype=torch.bool)).unit()
    few = select(many, words, 0.25)
    pair = {"all": lab.flops(lambda: filip.similarity(many, words)), "a quarter": lab.flops(lambda: filip.similarity(*few))}
    with torch.no_grad():
        ratio = lab.timing(lambda: filip.similarity(many, words), lambda: filip.similarity(*few))
    return Finding(
        checks={
            "encoding costs at most 5 % more FLOPs than for one vector": alone["filip"] <= 1.05 * alone["clip"],
            "comparing 64 images with 64 texts costs less than encoding them": pair["all"] < 64 * alone["filip"],
            "a quarter of the tokens is compared at least 4 times as fast": ratio.median >= 4,
        },
        measured={
            "encoding a pair, FLOPs": alone["filip"],
            "comparing 64 x 64, FLOPs": pair["all"],
            "comparing 64 x 64 with a quarter of the tokens, FLOPs": pair["a quarter"],
            "time ratio of all tokens to a quarter": ratio.median,
        },
        baseline={"encoding a pair for one vector, FLOPs": alone["clip"]},
        shape=f"196 visual tokens, 24 words, 128 channels, {lab.shape()}",
    )


@torch.no_grad()
def _pointing(model: Any, processor: Any, data: duals.Pairs) -> tuple[float, float]:
    """How often the patch most like a thing's name lies in the thing's box, and how often the patch of the next thing's name."""
    from tessera.lab.instruments import duals

    right = other = count = 0
    spoken: dict[str, Tensor] = {}
    for row, sample in enumerate(data.samples):
        things = duals.things_once(sample)
        if len(things) < 2:
            continue
        patches = duals.normalised(_patches(model.pool, data.features[row].float()))
        for place, (name, box) in enumerate(things):
            inside = duals.inside(data.grid, box)
            for said in (name, things[place - 1][0]):
                if said not in spoken:
                    spoken[said] = _name_vectors(model, processor, said)
                best = int((patches @ spoken[said].t()).mean(1).argmax())
                right += bool(inside[best]) and said == name
                other += bool(inside[best]) and said != name
            count += 1
    return right / count, other / count


def _name_vectors(model: Any, processor: Any, name: str) -> Tensor:
    """Unit vectors of the tokens that spell the name in a plain prompt, or the prompt's one vector."""
    from tessera.lab.instruments import duals
    from tessera.models.few_shot import prompt

    text = prompt(duals.PROMPTS[0], name)
    embedded = duals.embed_texts(model, processor, [text])
    vectors = embedded.vectors[0]
    return vectors[duals.words_of(processor, text, name)] if len(vectors) > 1 else vectors


def _patches(pool: Any, features: Tensor) -> Tensor:
    """Patch by patch [N, D] -> [N, E]: FILIP's tokens, or what attention pooling makes of that patch alone in CLIP."""
    if isinstance(pool, FILIP):
        return pool.project(pool.norm(features))
    value = pool.key_value(pool.norm(features)).chunk(2, dim=-1)[1]
    return pool.project(pool.out(value))
