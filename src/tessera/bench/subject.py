"""The model that a benchmark runs: a folder's, or one of the nano shape with random weights; and what it is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tessera.errors import UserError


@dataclass(slots=True, kw_only=True)
class BenchSubject:
    """What was measured, in words and numbers: enough to judge a ratio by."""

    model: str
    language_model: dict[str, Any]
    parameters: int
    tokens_per_image: int
    image_size: int
    dtype: str
    attention: str
    threads: int
    versions: dict[str, str]
    machine: str


def load(name: str, seed: int = 0) -> tuple[Any, Any, BenchSubject]:
    """Model, processor and description; `name` "" is the nano recipe's shape with random weights.

    Raises `UserError` for a model that is not one of Tessera's composed ones.
    """
    import torch

    from tessera.evaluation import provenance

    if name:
        from tessera.models import reference

        model, processor = reference.load(name)
        if model.config.model_type != "tessera_vlm":
            raise UserError(f"{name} is a {model.config.model_type!r} model; this benchmark runs Tessera's composed models.")
    else:
        from tessera.recipes.recipe import recipe
        from tessera.training.run import build

        nano = recipe("nano")
        nano.start = {}
        torch.manual_seed(seed)
        model, processor = build(nano)
        model.set_attn_implementation("sdpa")  # what transformers takes by itself
        model.eval()
    text = model.config.text_config
    shape = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size")
    return (
        model,
        processor,
        BenchSubject(
            model=name or "nano shape, random weights",
            language_model={key: getattr(text, key, None) for key in shape},
            parameters=provenance.parameter_count(model),
            tokens_per_image=model.tokens_per_image,
            image_size=model.image_size,
            dtype=str(model.dtype).removeprefix("torch."),
            attention=str(model.config._attn_implementation),
            threads=torch.get_num_threads(),
            versions=provenance.versions(),
            machine=provenance.machine(),
        ),
    )


def scenes(count: int, questions: int, size: int) -> list[tuple[list[Any], list[str]]]:
    """Rows of (one image of about `size` pixels a side, `questions` questions about it) from the test split."""
    from tessera.world import World

    side = min(2048, max(64, size))
    world = World(split="test", width=side, height=side)
    rows: list[tuple[list[Any], list[str]]] = []
    index = 0
    while len(rows) < count:
        sample = world.sample(index, "scene")
        texts = list(dict.fromkeys(question.text for question in sample.questions()))
        if len(texts) >= questions:
            spread = [texts[i * len(texts) // questions] for i in range(questions)]
            rows.append((sample.images(), spread))
        index += 1
    return rows
