"""CLIP: one vector per image and one per text, trained by contrast alone, classify zero-shot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Checked, Exact, Experiment, Use, beats, worse
from tessera.lab.protocols.contrastive import Contrastive

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def transformers_model(lab: Lab) -> Checked:
    """The original architecture on copied random weights: causal text tower read at its end, image read at its class token."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    words = {"vocab_size": 40, "bos_token_id": 1, "pad_token_id": 0, "eos_token_id": 39, "max_position_embeddings": 12}
    config = CLIPConfig(
        text_config={**tower, **words}, vision_config={**tower, "image_size": 16, "patch_size": 8}, projection_dim=24
    )
    theirs: Any = CLIPModel(config).eval()
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
    spread = float(expected.logits_per_image.std())
    return Checked(
        checks={**{f"{name} within 1e-5": gap < 1e-5 for name, gap in gaps.items()}, "the logits vary": spread > 0.1},
        measured={
            **{f"{name} differ by": gap for name, gap in gaps.items()},
            "standard deviation of the logits": spread,
        },
        shape="towers of 2 layers of width 32, 5 images and texts, float32, random weights",
    )


def _same_as(theirs: Any) -> Any:
    """A Tessera dual encoder with the weights of a transformers CLIPModel; its image tokens come from their tower."""
    import torch
    from torch import Tensor, nn

    from tessera.models.configuration import TesseraDualEncoderConfig
    from tessera.models.dual_encoder import TesseraDualEncoder

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tower = theirs.vision_model

        def forward(self, pixel_values: Tensor) -> Tensor:
            found: Tensor = self.tower(pixel_values=pixel_values).last_hidden_state
            return found

    text = theirs.config.text_config
    config = TesseraDualEncoderConfig(
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
    ours: Any = TesseraDualEncoder(config).eval()
    ours.encoder = Tower()
    model = theirs.text_model
    pairs = [
        (ours.pool.norm, theirs.vision_model.post_layernorm),
        (ours.pool.project, theirs.visual_projection),
        (ours.text.project, theirs.text_projection),
        (ours.text.embed, model.embeddings.token_embedding),
        (ours.text.norm, model.final_layer_norm),
    ]
    with torch.no_grad():
        ours.logit_scale.copy_(theirs.logit_scale)
        ours.text.position.copy_(model.embeddings.position_embedding.weight)
        for mine, other in zip(ours.text.blocks, model.encoder.layers, strict=True):
            heads = [getattr(other.self_attn, f"{n}_proj") for n in "qkv"]
            mine.attention.qkv.weight.copy_(torch.cat([h.weight for h in heads]))
            mine.attention.qkv.bias.copy_(torch.cat([h.bias for h in heads]))
            pairs += [(mine.attention.out, other.self_attn.out_proj), (mine.norm1, other.layer_norm1)]
            pairs += [(mine.norm2, other.layer_norm2), (mine.mlp.up, other.mlp.fc1), (mine.mlp.down, other.mlp.fc2)]
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())
    return ours


CLAIMS = [
    Exact(
        id="transformers_model",
        promise="Features, logits and loss equal those of transformers' CLIPModel on the same weights.",
        paper="section 2",
        run=transformers_model,
    ),
    Experiment(
        id="names_without_labels",
        promise="Zero-shot accuracy with one prompt is higher than the accuracy of a linear classifier fitted to two images of "
        "each class.",
        paper="section 3.1.5, figure 6",
        protocol=Contrastive(shots=2),
        treatment=Use("clip"),
        baseline=Use("clip", read="shots"),
        control=Use("clip", captions="shuffled"),
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        note="The classifier reads the same embeddings. In the paper four images of each class match the prompt and fewer do not "
        "reach it; that something matches, without a margin, no interval can show.",
    ),
    Experiment(
        id="several_prompts",
        promise="Zero-shot accuracy is higher with the mean of several prompts than with one prompt.",
        paper="section 3.1.4, figure 4",
        protocol=Contrastive(),
        treatment=Use("clip", read="prompts"),
        baseline=Use("clip"),
        control=Use("clip", captions="shuffled", read="prompts"),
        primary=beats("baseline"),
        valid_if=(worse("control"),),
    ),
]
