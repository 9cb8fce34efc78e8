"""What reduces to LLaVA becomes one, with the same logits; what does not says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from tessera.errors import UserError
from tessera.models.configuration import TesseraConfig
from tessera.models.export import check, to_llava
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.processing import TesseraProcessor

TOWER = {
    "hidden_size": 24,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
PLAIN = {"experts": {"kind": "single"}, "tokens": {"kind": "identity"}, "connector": {"kind": "mlp"}}


def build(
    config: Callable[..., TesseraConfig],
    tokenizer: Any,
    kind: str,
    layer: int,
    tied: bool,
    text: dict[str, Any],
) -> tuple[TesseraForConditionalGeneration, TesseraProcessor]:
    torch.manual_seed(0)
    encoder = {"kind": "transformers_vision", "tower": {"model_type": kind, **TOWER}, "layer": layer}
    settings = config({"encoders": [encoder], **PLAIN}, text_config=text | {"tie_word_embeddings": tied}, image_token_id=4)
    model = TesseraForConditionalGeneration(settings).eval()
    for parameter in model.parameters():  # zero biases would hide a bias that is not copied
        parameter.data.add_(torch.randn_like(parameter) * 0.05)
    images = TesseraImageProcessor(size=32, image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.25))
    return model, TesseraProcessor(images, tokenizer, tokens_per_image=16, max_length=128)


CASES = [
    ("clip_vision_model", -2, True, {}),
    ("clip_vision_model", -1, False, {}),
    ("siglip_vision_model", -1, True, {}),
    ("siglip_vision_model", -2, False, {"model_type": "qwen2"}),
]


@pytest.mark.parametrize(("kind", "layer", "tied", "text"), CASES)
def test_the_export_is_llava_with_equal_logits(
    config: Callable[..., TesseraConfig],
    tokenizer: Any,
    text_config: dict[str, Any],
    tmp_path: Path,
    kind: str,
    layer: int,
    tied: bool,
    text: dict[str, Any],
) -> None:
    model, processor = build(config, tokenizer, kind, layer, tied, text_config | text)
    folder = to_llava(model, processor, tmp_path / "llava")
    llava = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    theirs = AutoProcessor.from_pretrained(folder, backend="pil")

    values = np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)
    chats = [{"role": "user", "content": [{"type": "image", "image": Image.fromarray(values)}] * 2}]
    chats[0]["content"] = [*chats[0]["content"], {"type": "text", "text": "Is there a dog?"}]  # type: ignore[list-item]
    options: dict[str, Any] = {
        "tokenize": True,
        "return_dict": True,
        "add_generation_prompt": True,
        "return_tensors": "pt",
    }
    inputs = processor.apply_chat_template(chats, **options)
    same = theirs.apply_chat_template(chats, **options)
    assert torch.equal(same["input_ids"], inputs["input_ids"])
    torch.testing.assert_close(same["pixel_values"], inputs["pixel_values"], rtol=0, atol=1e-5)

    torch.testing.assert_close(llava(**inputs).logits, model(**inputs).logits, rtol=0, atol=1e-5)
    generated = [m.generate(**inputs, max_new_tokens=8, do_sample=False) for m in (llava, model)]
    assert torch.equal(generated[0], generated[1])


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"encoders": [{"kind": "conv_vit", "image_size": 32, "width": 24, "heads": 2, "depth": 1}]},
        "encoders.0 has 'conv_vit'",
    ),
    ({"tokens": {"kind": "pixel_shuffle"}}, "tokens has 'pixel_shuffle', LLaVA has 'identity'"),
    ({"connector": {"kind": "linear"}}, "connector has 'linear'"),
    ({"connector": {"kind": "mlp", "depth": 3}}, "connector has an MLP of 3 layers"),
    ({"connector": {"kind": "mlp", "norm": True}}, "connector has a LayerNorm"),
    ({"connector": {"kind": "mlp", "hidden": 64}}, "hidden width of 64"),
]


@pytest.mark.parametrize(("parts", "message"), REFUSED)
def test_what_does_not_reduce_is_named(
    config: Callable[..., TesseraConfig],
    processor: TesseraProcessor,
    tmp_path: Path,
    parts: dict[str, Any],
    message: str,
) -> None:
    encoder = {"kind": "transformers_vision", "tower": {"model_type": "clip_vision_model", **TOWER}}
    model = TesseraForConditionalGeneration(config({"encoders": [encoder], **PLAIN, **parts}))
    with pytest.raises(UserError, match=message):
        to_llava(model, processor, tmp_path / "llava")
    assert not (tmp_path / "llava").exists()


def test_several_experts_and_padding_do_not_reduce(
    config: Callable[..., TesseraConfig],
    model: TesseraForConditionalGeneration,
    processor: TesseraProcessor,
    tokenizer: Any,
    text_config: dict[str, Any],
) -> None:
    with pytest.raises(UserError, match="encoders has 2 encoders"):
        check(model, processor)
    simple, own = build(config, tokenizer, "clip_vision_model", -2, True, text_config)
    own.image_processor.fit = "pad"
    with pytest.raises(UserError, match="fit='pad'"):
        check(simple, own)
