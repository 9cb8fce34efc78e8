"""A tiny vision-language model over the world's own words, and an answerer that knows every answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from tessera.evaluation.answering import Answer, Row
from tessera.evaluation.items import EvaluationConfig, Item, draw
from tessera.models.configuration import TesseraConfig
from tessera.models.image_processing import TesseraImageProcessor
from tessera.models.modeling import TesseraForConditionalGeneration
from tessera.models.processing import TesseraProcessor
from tessera.models.tokenizer import IMAGE, build_tokenizer
from tessera.world import WorldConfig
from tessera.world.scene import Question
from tessera.world.vocabulary import words

SIZE = 64
ENCODER = {"kind": "conv_vit", "image_size": SIZE, "patch_size": 16, "width": 16, "depth": 1, "heads": 2}


def text_config(vocabulary: int) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return build_tokenizer(words(), max_length=512)


@pytest.fixture(scope="session")
def processor(tokenizer: Any) -> TesseraProcessor:
    return TesseraProcessor(TesseraImageProcessor(size=SIZE), tokenizer, tokens_per_image=4, max_length=512)


@pytest.fixture
def model(tokenizer: Any) -> TesseraForConditionalGeneration:
    torch.manual_seed(0)
    parts = {
        "encoders": [ENCODER],
        "experts": {"kind": "single"},
        "tokens": {"kind": "pixel_shuffle"},
        "connector": {"kind": "mlp"},
        "coupling": {"kind": "prefix"},
    }
    config = TesseraConfig(parts=parts, text_config=text_config(len(tokenizer)), image_token_id=IMAGE)
    return TesseraForConditionalGeneration(config).eval()


@pytest.fixture(scope="session")
def config() -> EvaluationConfig:
    """Two questions of each type about small pictures."""
    return EvaluationConfig(world=WorldConfig(split="test", width=SIZE, height=SIZE), n=36, batch_size=4, max_new_tokens=4)


@pytest.fixture(scope="session")
def items(config: EvaluationConfig) -> list[Item]:
    return draw(config)


class Knowing:
    """Answers as `say(question)` does; keeps the rows that it was asked."""

    def __init__(self, items: Sequence[Item], say: Callable[[Question], str]) -> None:
        self.say, self.rows = say, list[Row]()
        self._known: dict[tuple[str, ...], Item] = {tuple(q.text for q in i.questions): i for i in items}

    def answer_batch(self, rows: Sequence[Row], max_new_tokens: int) -> list[list[Answer]]:
        self.rows += rows
        return [[Answer(self.say(q)) for q in self._known[tuple(asked)].questions] for _, asked in rows]


@pytest.fixture
def knowing(items: list[Item]) -> Callable[[Callable[[Question], str]], Knowing]:
    return lambda say: Knowing(items, say)
