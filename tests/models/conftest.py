"""Tiny models: fractions of a second to build, every path of the real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from tessera.models.configuration import TesseraConfig
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.processing import TesseraProcessor
from tessera.models.tokenizer import IMAGE, build_tokenizer

WORDS = (
    [
        "is",
        "Is",
        "there",
        "a",
        "dog",
        "cat",
        "the",
        "What",
        "does",
        "sign",
        "say",
        "yes",
        "no",
        "Where",
        "red",
        "fire",
        "engine",
        "above",
        "below",
        "left",
        "right",
    ]
    + [str(i) for i in range(100)]
    + [f"{i:02d}" for i in range(100)]
)


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer(WORDS, max_length=128)


@pytest.fixture(scope="session")
def encoder() -> Callable[..., dict[str, Any]]:
    def spec(**changes: Any) -> dict[str, Any]:
        plain = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 1, "heads": 2}
        return plain | changes

    return spec


@pytest.fixture(scope="session")
def text_config(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@pytest.fixture(scope="session")
def config(encoder: Callable[..., dict[str, Any]], text_config: dict[str, Any]) -> Callable[..., TesseraConfig]:
    """A configuration with two experts and pixel shuffle, any field or part changed."""

    def build(parts: Any = None, **changes: Any) -> TesseraConfig:
        plain = {
            "encoders": [encoder(), encoder(width=16)],
            "experts": {"kind": "channel_concat"},
            "tokens": {"kind": "pixel_shuffle"},
            "connector": {"kind": "mlp", "norm": True},
            "coupling": {"kind": "prefix"},
        }
        fields = {"text_config": text_config, "image_token_id": IMAGE} | changes
        return TesseraConfig(parts=plain | (parts or {}) if not isinstance(parts, list) else parts, **fields)

    return build


@pytest.fixture
def model(config: Callable[..., TesseraConfig]) -> TesseraForConditionalGeneration:
    torch.manual_seed(0)
    return TesseraForConditionalGeneration(config()).eval()


@pytest.fixture
def processor(tokenizer: PreTrainedTokenizerFast) -> TesseraProcessor:
    return TesseraProcessor(TesseraImageProcessor(size=32), tokenizer, tokens_per_image=4, max_images=3, max_length=64)
