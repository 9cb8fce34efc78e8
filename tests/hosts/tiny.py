"""Tiny composed models with random weights whose answers vary."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tessera.models.configuration import TesseraConfig
from tessera.models.export import to_llava
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.processing import TesseraProcessor
from tessera.models.tokenizer import IMAGE, build_tokenizer

WORDS = [
    *("Is", "there", "a", "dog", "cat", "the", "What", "does", "sign", "say", "yes", "no", "Where", "red", "fire", "engine"),
    *("above", "below", "left", "right", "and", "then", "of", "is"),
]
QUESTIONS = [
    "Is there a dog?",
    "What does the sign say?",
    "Where is the red fire engine?",
    "dog",
    "What is left of the cat and the dog?",
]
LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
}


def build(
    text: dict[str, Any] | None = None,
    *,
    seed: int = 0,
    max_length: int = 128,
    max_images: int = 3,
    encoder: dict[str, Any] | None = None,
    tokens: dict[str, Any] | None = None,
) -> tuple[TesseraForConditionalGeneration, TesseraProcessor]:
    """A model of 16-pixel images in 4 tokens and its processor; `text` changes the language model's configuration, `encoder` and
    `tokens` those parts."""
    tokenizer = build_tokenizer(WORDS)
    ids = {"vocab_size": len(tokenizer), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    plain = {"kind": "conv_vit", "image_size": 16, "patch_size": 4, "width": 16, "depth": 1, "heads": 2}
    config = TesseraConfig(
        parts={"encoders": [encoder or plain], "tokens": tokens or {"kind": "pixel_shuffle"}, "connector": {"kind": "mlp"}},
        text_config={**LLAMA, **ids, **(text or {})},
        image_token_id=IMAGE,
    )
    torch.manual_seed(seed)
    model = TesseraForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # large weights: every input leads elsewhere
            if parameter.ndim == 2:
                parameter.mul_(8)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    processor = TesseraProcessor(
        TesseraImageProcessor(size=16), tokenizer, tokens_per_image=4, max_images=max_images, max_length=max_length
    )
    return model, processor


def save_llava(folder: Path) -> Path:
    """A stock LLaVA of transformers with its processor, written to `folder`."""
    tower = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8)
    encoder = {"kind": "transformers_vision", "tower": {"model_type": "clip_vision_model", **tower}}
    model, processor = build(encoder=encoder, tokens={"kind": "identity"})
    return to_llava(model, processor, folder)


def images(count: int, seed: int = 0) -> list[Image.Image]:
    """Noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 16, 16, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(p.numpy()) for p in pixels]


def expected(
    model: Any, processor: Any, rows: list[tuple[list[Image.Image], list[str]]], new: int, **options: Any
) -> list[list[tuple[int, ...]]]:
    """What `model.generate` gives for all rows in one left-padded batch: tokens without the end."""
    flat = [(own, question) for own, asked in rows for question in asked]
    texts = [processor.prompt(question, len(own)) for own, question in flat]
    pictures = [own for own, _ in flat] if any(own for own, _ in flat) else None
    inputs = processor(images=pictures, text=texts, return_tensors="pt", padding=True, padding_side="left")
    out = model.generate(**inputs, max_new_tokens=new, do_sample=False, **options)
    tokens = iter(until_end(row) for row in out[:, inputs["input_ids"].shape[1] :].tolist())
    return [[next(tokens) for _ in asked] for _, asked in rows]


def until_end(tokens: list[int], end: int = 2) -> tuple[int, ...]:
    """The tokens before the end token."""
    return tuple(tokens[: tokens.index(end)] if end in tokens else tokens)
