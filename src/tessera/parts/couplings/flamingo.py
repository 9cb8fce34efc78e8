"""Flamingo reads images by gated cross-attention between the layers of a frozen language model.

Source: Alayrac et al., "Flamingo: a Visual Language Model for Few-Shot Learning", 2022, arXiv:2204.14198. A perceiver resampler
turns the features of an image into R latents. In front of every n-th layer of the language model a new block lets the text
attend to them, x + tanh(a) attention, x + tanh(b) feed-forward, with a = b = 0 at first, so that training starts from the
language model as it was. A text token attends to the last image before it only. The image itself is one placeholder in the
text. Encoders and language model stay frozen.

Deviations: the resampler stands behind the connector (a linear one comes closest) and so has the language model's width; a clip
is several images, each with latents of its own, so times are not embedded (`tessera.nn.resampler` can); the block stands
in front of layers n, 2n, ... (as in open_flamingo), counted from 1; the placeholder has the embedding that the language
model has for it, which is not trained. In packed rows "before" means in the same question or in the shared prefix.

Shapes: B rows, T tokens, M images, n features of an image, R latents, E channels of the language model, I most images of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tessera.config import config
from tessera.lab.claim import Finding, claim
from tessera.models.coupling import Coupling, Pass, decoder_layers, hidden_of, require, with_hidden
from tessera.nn.cross_attention import GatedCrossAttention
from tessera.nn.resampler import PerceiverResampler
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


@dataclass(slots=True)
class Memory:
    """What later passes must know: latents [B, I, R, E] of the images so far, and their slots [B, K]: the number of the image
    that stands at a place of the text, -1 elsewhere."""

    latents: Tensor | None
    slots: Tensor


@part("flamingo", socket="couplings", catalog=137)
class Flamingo(Coupling):
    """Perceiver resampler and gated cross-attention blocks; one placeholder per image."""

    @config
    class Config:
        """latents R per image; depth of the resampler; every n-th layer of the language model gets a block; heads and
        head_width of all attentions; multiple: hidden width of all feed-forwards, as a multiple of E."""

        latents: int = 64
        depth: int = 6
        every: int = 1
        heads: int = 8
        head_width: int = 64
        multiple: int = 4

        def validate_sizes(self) -> None:
            for name in ("latents", "depth", "every", "heads", "head_width", "multiple"):
                if getattr(self, name) < 1:
                    raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")

    def __init__(self, config: Config, width: int, language_model: nn.Module | None = None, **context: Any) -> None:
        super().__init__(config, width, language_model, **context)
        layers = decoder_layers(language_model, "flamingo")
        self.resampler = PerceiverResampler(width, config.latents, config.depth, config.heads, config.head_width, config.multiple)
        chosen = range(config.every - 1, len(layers), config.every)
        self.blocks = nn.ModuleList(
            GatedCrossAttention(width, width, config.heads, config.head_width, config.multiple) for _ in chosen
        )
        for block, layer in enumerate(chosen):
            layers[layer].register_forward_pre_hook(partial(self._insert, block), with_kwargs=True)

    def receive(self, features: Tensor) -> Tensor:
        """[M, n, E] -> latents [M, R, E]."""
        return self.resampler(features)

    def placeholders(self, count: int) -> int:
        """One per image."""
        return 1

    def forward(self, embeddings: Tensor, placeholders: Tensor, features: Tensor) -> Tensor:
        """Leaves the embeddings [B, T, E] as they are. Raises `UserError` unless each image has one placeholder."""
        require(placeholders, len(features), 1)
        return embeddings

    def begin(self, now: Pass) -> None:
        """Sorts the new images by rows and finds the last image before every token."""
        past: Memory | None = now.memory
        earlier = 0 if past is None or past.latents is None else past.latents.shape[1]
        known = None if past is None else past.slots[:, : now.cached]
        missing = now.cached - (0 if known is None else known.shape[1])
        blank = torch.full_like(now.placeholders[:, :1], -1, dtype=torch.int64).expand(-1, missing)
        number = now.placeholders.cumsum(1) - 1
        new = torch.where(now.placeholders, number + earlier, -1)
        slots = torch.cat([part for part in (known, blank, new) if part is not None], dim=1)
        latents = None if past is None else past.latents
        if now.features is not None:
            fresh = by_row(now.features, now.placeholders.sum(1))
            latents = fresh if latents is None else torch.cat([latents, fresh], dim=1)
        now.memory = Memory(latents, slots)
        now.notes["latents"] = None if latents is None else latents.flatten(1, 2)
        if latents is not None:
            image = last_image(slots, now.segments, new.shape[1])
            own = image[..., None] == torch.arange(latents.shape[1], device=image.device)
            now.notes["seen"] = own.repeat_interleave(latents.shape[2], dim=2)

    def _insert(self, block: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.now is None:
            return None
        notes = self.now.notes
        made = self.blocks[block](hidden_of(args, kwargs), notes["latents"], notes.get("seen"))
        return with_hidden(args, kwargs, made)


def by_row(features: Tensor, counts: Tensor) -> Tensor:
    """Features [M, R, E] of images in order, counts [B] images of each row -> [B, I, R, E], zeros where a row has fewer."""
    rows = features.split(counts.tolist())
    most = max(len(row) for row in rows)
    return torch.stack([F.pad(row, (0, 0, 0, 0, 0, most - len(row))) for row in rows])


def last_image(slots: Tensor, segments: Tensor | None, length: int) -> Tensor:
    """Number of the last image before (or at) each of the last `length` tokens, [B, length]; -1 where there is none.

    slots [B, K]: images are numbered in the order in which they stand. segments [B, K]: as in `tessera.nn.segments`.
    """
    if segments is None:
        return slots.cummax(1).values[:, slots.shape[1] - length :]
    from tessera.nn.segments import segment_mask

    return slots[:, None].where(segment_mask(segments, length)[:, 0], -1).amax(-1)


TINY = {"kind": "flamingo", "latents": 4, "depth": 1, "heads": 2, "head_width": 8}


@claim("before training the language model answers as if nothing had been inserted", kind="exact", paper="section 2.2")
def identity_at_first(lab: Lab) -> Finding:
    """Logits of a language model with closed gates, images given, against those of the bare language model on the same text."""
    from tessera.lab.instruments.couplings import consistent, pictures, prefix, tiny

    model = tiny(TINY)
    ids = torch.tensor([[*prefix(model, 2), 6, 20, 7]])
    with torch.no_grad():
        mine = model(ids, pictures(2)).logits
        bare = model.logits_of(model.model.language_model(ids).last_hidden_state)
        opened = opened_gates(model)(ids, pictures(2)).logits
    apart = consistent(model)
    return Finding(
        checks={
            "logits equal bit for bit with closed gates": torch.equal(mine, bare),
            "open gates change them": not torch.equal(opened, bare),
            "packing, batching and caching change nothing with open gates": max(apart.values()) <= 1e-5,
        },
        measured={"logits differ by": float((mine - bare).abs().max()), **apart},
        control={"with open gates they differ by": float((opened - bare).abs().max())},
        shape="4 layers of width 32, float32, random weights",
    )


@claim("a text token hears of the last image before it and of no other", kind="exact", paper="section 2.3, figure 7")
def last_image_only(lab: Lab) -> Finding:
    """Gradients of the logits behind each of three images to the latents of each, in one row of text; one block, so that
    nothing travels through the text itself."""
    from tessera.lab.instruments.couplings import pictures, prefix, tiny

    model = opened_gates(tiny({**TINY, "every": 4}))
    ids = torch.tensor([[1, 20, *prefix(model, 1)[1:], 21, *prefix(model, 1)[1:], 22, 23, *prefix(model, 1)[1:], 24]])
    places = (ids[0] == 4).nonzero().flatten().tolist()
    latents = model.get_image_features(pictures(3)).detach().requires_grad_()
    hidden = []
    block = model.model.coupling.blocks[0]
    handle = block.register_forward_hook(lambda _, args, out: hidden.append(out))
    model(ids, image_features=latents)
    handle.remove()
    sums = hidden[0][0].square().sum(-1)
    heard = torch.stack([torch.autograd.grad(s, latents, retain_graph=True)[0].abs().sum((1, 2)) for s in sums])
    last = torch.tensor([sum(place <= t for place in places) - 1 for t in range(ids.shape[1])])
    own = last[:, None] == torch.arange(3)
    clips = PerceiverResampler(32, latents=4, depth=1, heads=2, head_width=8, frames=8)
    sizes = [clips(torch.randn(1, frames, 16, 32)).shape[1] for frames in (1, 4, 8)]
    return Finding(
        checks={
            "gradient to every other image is exactly zero": float(heard[~own].max()) == 0,
            "gradient to the last image is not": bool((heard[own] > 0).all()),
            "a clip of 1, 4 or 8 frames becomes equally many latents": set(sizes) == {4},
        },
        measured={"to other images": float(heard[~own].max()), "to the last image, least": float(heard[own].min())},
        shape="3 images, 1 block, float32, random weights",
    )


@claim("inserted blocks alone teach a frozen language model to see", kind="effect", paper="section 3.1, table 3")
def frozen_model_sees(lab: Lab) -> Finding:
    """Experts and the language model of the reference stay frozen; connector, resampler and blocks learn in a short training.

    Baseline: the same model asked without images. Control: shown the pictures of other samples. The paper's few-shot numbers
    need a language model that learns in context, which the reference is not.
    """
    from tessera.lab.instruments.couplings import accuracy, bridged
    from tessera.lab.lab import mean, spread

    recipe = bridged(
        {"kind": "flamingo", "latents": 32, "depth": 2, "heads": 4, "head_width": 56, "every": 2, "multiple": 2},
        {"connector": 1.0, "coupling": 1.0},
        steps=120,
        start={"encoders.0": "object-expert", "encoders.1": "reading-expert", "connector": "nano", "language_model": "nano"},
    )
    trained = [lab.train(recipe, seed=seed) for seed in lab.seeds]
    seen = [accuracy(lab, pair) for pair in trained]
    blind = [accuracy(lab, pair, blind=True) for pair in trained]
    other = [accuracy(lab, pair, others=True) for pair in trained]
    return Finding(
        checks={
            "5 points above no image, in every seed": all(a - b >= 0.05 for a, b in zip(seen, blind, strict=True)),
            "5 points above other pictures, in every seed": all(a - b >= 0.05 for a, b in zip(seen, other, strict=True)),
        },
        measured={"accuracy": mean(seen)},
        baseline={"accuracy without images": mean(blind)},
        control={"accuracy with other pictures": mean(other)},
        seeds=lab.seeds,
        spread={"accuracy": spread(seen), "without images": spread(blind), "with other pictures": spread(other)},
        shape="120 steps of 24 samples; 240 questions of 4 types about 1 to 3 things",
        note="Where it fails: the blocks start from nothing, and the training is 100,000 times shorter than the paper's.",
    )


@claim("an image is one token of text, and blocks cost the same whatever its features", kind="cost", paper="section 2.1")
def constant_cost(lab: Lab) -> Finding:
    """FLOPs of reading a question of 16 tokens about one image with 49 and with 196 features, of the language model with its
    blocks alone, against the same features put among the text; sizes of the reference model, random weights."""
    from tessera.lab.instruments.couplings import nano_model
    from tessera.models.configuration import TesseraConfig
    from tessera.models.modeling import TesseraForConditionalGeneration

    def flops(coupling: dict[str, Any], factor: int) -> tuple[int, int]:
        model = nano_model(coupling, tokens={"kind": "pixel_shuffle", "factor": factor})
        model["text_config"]["vocab_size"] = 512
        built = TesseraForConditionalGeneration._from_config(TesseraConfig(**model), attn_implementation="eager").eval()
        ids = torch.tensor([[1, 5, *[4] * built.tokens_per_image, *range(20, 36)]])
        with torch.no_grad():
            features = built.get_image_features(torch.zeros(1, 3, built.image_size, built.image_size))
        return lab.flops(lambda: built(ids, image_features=features, logits_to_keep=1)), built.tokens_per_image

    spec = {"kind": "flamingo", "latents": 32, "depth": 2, "heads": 4, "head_width": 56}
    (few, one), (many, _) = flops(spec, 2), flops(spec, 1)
    (among, tokens), (among_many, _) = flops({"kind": "prefix"}, 2), flops({"kind": "prefix"}, 1)
    return Finding(
        checks={
            "one token per image": one == 1,
            "the same FLOPs with 49 and with 196 features": few == many,
            "fewer FLOPs than features among the text": few < among,
        },
        measured={"tokens": one, "FLOPs at 49 features": few, "FLOPs at 196 features": many, "FLOPs over prefix": few / among},
        baseline={"tokens": tokens, "FLOPs at 49 features": among, "FLOPs at 196 features": among_many},
        shape="language model 8 x 224, a block before every layer, 32 latents, 18 text tokens; towers and resampler not counted",
    )


def opened_gates(model: Any) -> Any:
    """The model with all gates at 1/2."""
    for block in model.model.coupling.blocks:
        for gate in (block.attention_gate, block.feed_forward_gate):
            nn.init.constant_(gate, 0.5)
    return model
