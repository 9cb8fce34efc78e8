"""CLIP against the equations, and the life of its weights in saved folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tests.parts.contrastive.tiny import batch, dual
from torch.nn import functional as F

from tessera.errors import UserError
from tessera.models.configuration import TesseraDualEncoderConfig
from tessera.models.contrast import Embedded, contrastive_loss
from tessera.models.dual_encoder import TesseraDualEncoder
from tessera.parts.contrastive import clip


def test_attention_pooling_is_that_of_the_equations() -> None:
    torch.manual_seed(0)
    part = clip.CLIP(clip.CLIP.Config(), width=8, out_width=5, heads=2)
    features = torch.randn(3, 6, 8)
    x = part.norm(features)
    key, value = part.key_value(x).chunk(2, dim=-1)
    pooled = []
    for head in (slice(0, 4), slice(4, 8)):
        weight = (key[..., head] @ part.query[head] / 2).softmax(1)
        pooled.append((weight[..., None] * value[..., head]).sum(1))
    expected = part.project(part.out(torch.cat(pooled, -1)))
    torch.testing.assert_close(part.images(features).pooled(), expected)


@pytest.mark.parametrize("image", ["attention", "mean", "first"])
def test_images_become_one_vector_each(image: str) -> None:
    part = clip.CLIP(clip.CLIP.Config(image=image), width=8, out_width=5, heads=2)
    features = torch.randn(3, 6, 8)
    found = part.images(features)
    assert found.vectors.shape == (3, 1, 5)
    if image == "first":
        torch.testing.assert_close(found.vectors[:, 0], part.project(part.norm(features[:, 0])))
        assert set(part.state_dict()) == {"norm.weight", "norm.bias", "project.weight"}
    if image == "mean":
        torch.testing.assert_close(found.vectors[:, 0], part.project(part.norm(features)).mean(1))


def test_texts_are_read_at_their_mean_or_their_end_wherever_the_padding_is() -> None:
    tokens = torch.randn(2, 4, 5)
    for row in ([True, True, False, False], [False, False, True, True], [True] * 4):
        there = torch.tensor([row, [True] * 4])
        own = [i for i, t in enumerate(row) if t]
        mean, end = (clip.CLIP(clip.CLIP.Config(text=t), 8, 5).texts(tokens, there).vectors[0, 0] for t in ("mean", "end"))
        torch.testing.assert_close(mean, tokens[0, own].mean(0))
        torch.testing.assert_close(end, tokens[0, own[-1]])


def test_logits_and_loss() -> None:
    model, inputs = dual(), batch()
    out = model(**inputs, return_loss=True)
    cosine = out.image_embeds @ out.text_embeds.t()
    torch.testing.assert_close(out.logits_per_image, cosine / 0.07)
    torch.testing.assert_close(out.logits_per_text, out.logits_per_image.t())
    each = [-row.log_softmax(0)[i] for m in (out.logits_per_image, out.logits_per_text) for i, row in enumerate(m)]
    torch.testing.assert_close(out.loss, sum(each) / len(each))


def test_several_prompts_are_one_mean_vector() -> None:
    part = clip.CLIP(clip.CLIP.Config(), 8, 5)
    prompts = [Embedded(torch.randn(3, 1, 5), torch.ones(3, 1).bool()).unit() for _ in range(4)]
    images = Embedded(torch.randn(2, 1, 5), torch.ones(2, 1).bool()).unit()
    mean = F.normalize(sum(p.vectors[:, 0] for p in prompts), dim=-1)
    torch.testing.assert_close(part.classify(images, prompts), images.vectors[:, 0] @ mean.t())


def test_a_causal_tower_does_not_look_ahead() -> None:
    model, inputs = dual({"kind": "clip", "text": "end"}, text_causal=True, text_activation="quick_gelu"), batch()
    with torch.no_grad():
        tokens, _ = model.text(inputs["input_ids"], inputs["attention_mask"])
        shorter, _ = model.text(inputs["input_ids"][:, :5], inputs["attention_mask"][:, :5])
    torch.testing.assert_close(tokens[:, :5], shorter, atol=1e-6, rtol=1e-5)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    left = torch.stack([torch.roll(row, int((m == 0).sum())) for row, m in zip(ids, mask, strict=True)])
    both = [model.get_text_features(i, (i != 0).long()) for i in (ids, left)]
    torch.testing.assert_close(*both, atol=1e-5, rtol=1e-5)


def test_folders_saved_before_there_was_a_choice_still_load(tmp_path: Path) -> None:
    model, inputs = dual(), batch()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config.pop("contrastive") == {"kind": "clip", "image": "attention", "text": "mean"}
    del config["text_causal"], config["text_activation"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    names = set(load_file(tmp_path / "model.safetensors"))
    of_old = {
        "query",
        "norm.weight",
        "norm.bias",
        "key_value.weight",
        "key_value.bias",
        "out.weight",
        "out.bias",
        "project.weight",
    }
    assert {n.removeprefix("pool.") for n in names if n.startswith("pool.")} == of_old
    assert {"text.project.weight", "text.embed.weight", "logit_scale"} <= names
    loaded = TesseraDualEncoder.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(loaded(**inputs).logits_per_image, model(**inputs).logits_per_image, rtol=0, atol=0)


def test_mistakes_are_refused() -> None:
    with pytest.raises(UserError, match="clip"):
        TesseraDualEncoderConfig(contrastive={"kind": "clipp"})
    with pytest.raises(UserError, match="contrastive"):
        TesseraDualEncoderConfig(contrastive={"kind": "clip", "imag": "mean"})
    with pytest.raises(UserError, match="contrastive"):
        TesseraDualEncoderConfig(contrastive={"kind": "clip", "image": "last"})
    with pytest.raises(UserError, match="quick_gelu"):
        TesseraDualEncoderConfig(text_activation="quick-gelu")
    with pytest.raises(UserError, match="cannot be pooled by 5 heads; set pool_heads"):
        dual(pool_heads=5)
    with pytest.raises(UserError, match="pairs images and texts, but there are 2 and 3"):
        contrastive_loss(torch.zeros(2, 3))
    with pytest.raises(UserError, match="attention_mask"):
        dual().embed_texts(inputs_embeds=torch.zeros(1, 3, 24))
