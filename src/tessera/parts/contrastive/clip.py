"""CLIP gives every image and every text one vector and tells the right pair from all others of the batch.

Source: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021, arXiv:2103.00020.
Embeddings of length 1, cosine similarity times a learned temperature, cross-entropy over the batch in both directions. A class
is named by the mean of its prompts' embeddings, normalised again.

Deviations: by default the image is pooled by attention with one learned query (as in SigLIP, Zhai et al., 2023, arXiv:2303.15343)
and the text by the mean over its tokens, which small towers learn faster; `image="first"` and `text="end"` with `text_causal` and
`text_activation="quick_gelu"` in the model's configuration are the original, for an encoder whose first token is the class token.

Shapes: I images, N tokens of width D, X texts of T tokens, E channels of the shared space, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from transformers import initialization as init

from tessera.config import config
from tessera.errors import UserError
from tessera.lab.claim import Finding, claim
from tessera.models.contrast import Contrast, Embedded
from tessera.nn import initialise
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


@part("clip", socket="contrastive", catalog=326)
class CLIP(Contrast):
    """One vector for each, cosine similarity, symmetric cross-entropy."""

    @config
    class Config:
        """image: pooled by attention with a learned query, as the mean of its tokens, or as the first token (the class token).
        text: the mean of its tokens, or the last one (the end-of-text token of a causal tower)."""

        image: Literal["attention", "mean", "first"] = "attention"
        text: Literal["mean", "end"] = "mean"

    def __init__(self, config: Config, width: int, out_width: int, heads: int = 1) -> None:
        super().__init__()
        self.config = config
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, out_width, bias=False)
        if config.image == "attention":
            if width % heads:
                raise UserError(f"an image tower of width {width} cannot be pooled by {heads} heads; set pool_heads.")
            self.query = nn.Parameter(torch.empty(width))
            self.key_value = nn.Linear(width, 2 * width)
            self.out = nn.Linear(width, width)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02; the projection keeps the variance of its input."""
        initialise.tree(self)
        init.normal_(self.project.weight, std=self.project.in_features**-0.5)
        if self.config.image == "attention":
            init.normal_(self.query, std=0.02)

    def images(self, features: Tensor) -> Embedded:
        """[I, N, D] -> [I, 1, E]."""
        if self.config.image == "first":
            pooled = self.norm(features[:, 0])
        elif self.config.image == "mean":
            pooled = self.norm(features).mean(1)
        else:
            pooled = self._attend(features)
        return _single(self.project(pooled))

    def texts(self, tokens: Tensor, there: Tensor) -> Embedded:
        """[X, T, E], [X, T] -> [X, 1, E]."""
        if self.config.text == "end":
            places = torch.arange(there.shape[1], device=there.device)
            last = (there * places).argmax(1)
            return _single(tokens[torch.arange(len(tokens), device=tokens.device), last])
        return _single(Embedded(tokens, there).pooled())

    def similarity(self, images: Embedded, texts: Embedded) -> tuple[Tensor, Tensor]:
        """[I, X] cosines, and the same turned."""
        cosine = images.vectors[:, 0] @ texts.vectors[:, 0].t()
        return cosine, cosine.t()

    def classify(self, images: Embedded, prompts: Sequence[Embedded]) -> Tensor:
        """[I, C] cosines with the normalised means of the classes' prompts."""
        return self.similarity(images, _single(torch.stack([p.vectors[:, 0] for p in prompts]).mean(0)).unit())[0]

    def _attend(self, features: Tensor) -> Tensor:
        count, tokens, width = features.shape
        parts = self.key_value(self.norm(features)).view(count, tokens, 2, self.heads, width // self.heads)
        key, value = parts.permute(2, 0, 3, 1, 4)
        query = self.query.to(key.dtype).view(1, self.heads, 1, -1) * (width // self.heads) ** -0.5
        pooled = (query @ key.transpose(-1, -2)).softmax(-1) @ value
        return self.out(pooled.reshape(count, width))


def _single(vectors: Tensor) -> Embedded:
    """[K, E] -> one vector each."""
    return Embedded(vectors[:, None], torch.ones(len(vectors), 1, dtype=torch.bool, device=vectors.device))


@claim("features, logits and loss are those of transformers' CLIPModel on the same weights", kind="exact", paper="section 2")
def equals_transformers(lab: Lab) -> Finding:
    """The original architecture with random weights: causal text tower read at its end, image read at its class token."""
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    theirs = CLIPModel(
        CLIPConfig(
            text_config={
                **tower,
                "vocab_size": 40,
                "bos_token_id": 1,
                "pad_token_id": 0,
                "eos_token_id": 39,
                "max_position_embeddings": 12,
            },
            vision_config={**tower, "image_size": 16, "patch_size": 8},
            projection_dim=24,
        )
    ).eval()
    for name, weight in theirs.named_parameters():
        if weight.ndim > 1 or "norm" in name or "bias" in name or "class" in name:
            weight.data = torch.randn_like(weight) * (0.3 if weight.ndim > 1 else 0.5)
    ours = _same_as(theirs)
    ids = torch.randint(1, 39, (5, 10))
    for row, length in enumerate((3, 10, 7, 5, 8)):
        ids[row, length - 1], ids[row, length:] = 39, 0
    mask, pixels = (ids != 0).long(), torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        expected = theirs(input_ids=ids, attention_mask=mask, pixel_values=pixels, return_loss=True)
        found = ours(ids, pixels, mask, return_loss=True)
        image = theirs.get_image_features(pixel_values=pixels).pooler_output - ours.get_image_features(pixels)
        text = theirs.get_text_features(input_ids=ids, attention_mask=mask).pooler_output - ours.get_text_features(ids, mask)
    gaps = {
        "image features": float(image.abs().max()),
        "text features": float(text.abs().max()),
        "logits": float((expected.logits_per_image - found.logits_per_image).abs().max()),
        "loss": float((expected.loss - found.loss).abs()),
    }
    return Finding(
        checks={f"{name} within 1e-5": gap < 1e-5 for name, gap in gaps.items()},
        measured={f"largest difference of the {name}": gap for name, gap in gaps.items()},
        baseline={
            "standard deviation of their logits": float(expected.logits_per_image.std()),
            "their loss": float(expected.loss),
        },
        shape="towers of 2 layers of width 32, 5 images and texts, float32, random weights",
    )


def _same_as(theirs: Any) -> Any:
    """A Tessera dual encoder with the weights of a transformers CLIPModel; its image tokens come from their tower."""
    from tessera.models.configuration import TesseraDualEncoderConfig
    from tessera.models.dual_encoder import TesseraDualEncoder

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = theirs.vision_model

        def forward(self, pixel_values: Tensor) -> Tensor:
            return self.tower(pixel_values=pixel_values).last_hidden_state

    text = theirs.config.text_config
    ours: Any = TesseraDualEncoder(
        TesseraDualEncoderConfig(
            encoder={"kind": "conv_vit", "image_size": 16, "width": theirs.vision_embed_dim, "depth": 1, "heads": 2},
            contrastive={"kind": "clip", "image": "first", "text": "end"},
            projection_dim=theirs.projection_dim,
            vocab_size=text.vocab_size,
            text_width=text.hidden_size,
            text_depth=text.num_hidden_layers,
            text_heads=text.num_attention_heads,
            max_position_embeddings=text.max_position_embeddings,
            text_causal=True,
            text_activation="quick_gelu",
        )
    ).eval()
    ours.encoder = Tower()
    with torch.no_grad():
        ours.logit_scale.copy_(theirs.logit_scale)
    ours.pool.norm.load_state_dict(theirs.vision_model.post_layernorm.state_dict())
    ours.pool.project.load_state_dict(theirs.visual_projection.state_dict())
    ours.text.project.load_state_dict(theirs.text_projection.state_dict())
    model = theirs.text_model
    ours.text.embed.load_state_dict(model.embeddings.token_embedding.state_dict())
    ours.text.position.data.copy_(model.embeddings.position_embedding.weight.data)
    ours.text.norm.load_state_dict(model.final_layer_norm.state_dict())
    for mine, other in zip(ours.text.blocks, model.encoder.layers, strict=True):
        heads = [getattr(other.self_attn, f"{n}_proj") for n in "qkv"]
        mine.attention.qkv.weight.data = torch.cat([h.weight.data for h in heads])
        mine.attention.qkv.bias.data = torch.cat([h.bias.data for h in heads])
        for a, b in (
            (mine.attention.out, other.self_attn.out_proj),
            (mine.norm1, other.layer_norm1),
            (mine.norm2, other.layer_norm2),
            (mine.mlp.up, other.mlp.fc1),
            (mine.mlp.down, other.mlp.fc2),
        ):
            a.load_state_dict(b.state_dict())
    return ours


@claim("names things it was never trained to classify, and finds captions", kind="effect", paper="sections 3.1 and 3.1.4")
def names_without_training(lab: Lab) -> Finding:
    """The reference dual encoder: naming the only thing of an image among all base concepts, in seen and held-out colours, by one
    prompt and by several; the caption of an image among 256. Control: the same architecture with untrained weights."""
    from tessera.lab.instruments import duals
    from tessera.lab.lab import mean, spread

    model, processor = lab.reference("nano-clip")
    blank = duals.untrained(model)
    cells: dict[str, list[float]] = {}
    for seed in lab.seeds:
        seen = duals.single_things(lab.world(), 300, seed)
        held = duals.single_things(lab.world(combinations="held-out"), 150, seed, duals.in_held_out_colour)
        pairs = duals.captioned(lab.world(things=(1, 5), kinds={"scene": 1.0}), 256, seed)
        shown = [duals.pixels(samples, processor) for samples in (seen, held, pairs)]
        for name, one in (("", model), ("untrained: ", blank)):
            images = duals.embed_images(one, shown[2])
            texts = duals.embed_texts(one, processor, [duals.caption(s) for s in pairs])
            found = {
                "seen": duals.name_accuracy(one, processor, shown[0], seen, duals.PROMPTS[:1]),
                "held-out colours": duals.name_accuracy(one, processor, shown[1], held, duals.PROMPTS[:1]),
                "seen, several prompts": duals.name_accuracy(one, processor, shown[0], seen, duals.PROMPTS),
                "caption among 256": duals.caption_recall(one, images, texts)[0],
            }
            for cell, value in found.items():
                cells.setdefault(name + cell, []).append(value)
    measured = {cell: mean(values) for cell, values in cells.items() if ":" not in cell}
    return Finding(
        checks={
            "at least 90 % of seen things are named": measured["seen"] >= 0.90,
            "at least 75 % in held-out colours": measured["held-out colours"] >= 0.75,
            "several prompts are not worse than one": measured["seen, several prompts"] >= measured["seen"],
            "the caption among 256 is found for at least 60 %": measured["caption among 256"] >= 0.60,
            "untrained weights stay below 5 %": all(mean(v) < 0.05 for c, v in cells.items() if ":" in c),
        },
        measured=measured,
        control={cell: mean(values) for cell, values in cells.items() if ":" in cell},
        baseline={"chance of a name": 1 / duals.concept_count(), "chance of a caption": 1 / 256},
        seeds=lab.seeds,
        spread={cell: spread(values) for cell, values in cells.items() if ":" not in cell},
        note="The reference learns more than 200 names from captions of up to five things and is not told which is which.",
    )
