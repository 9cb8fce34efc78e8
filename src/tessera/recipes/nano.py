"""The reference vision-language model: two experts, a projector that knows places, a language model of ten layers."""

from __future__ import annotations

from typing import Any

from tessera.recipes import object_expert, reading_expert
from tessera.recipes.recipe import Recipe
from tessera.training.options import Questions
from tessera.training.plan import OptimConfig, Schedule, Stage, TrainConfig
from tessera.world import WorldConfig

EXPERTS = {"encoders.0": "object-expert", "encoders.1": "reading-expert"}


def model(layers: int, width: int = 192, heads: int = 4, hidden: int = 512) -> dict[str, Any]:
    """The composed model with a Llama of `layers` layers; the vocabulary is filled in from the tokenizer."""
    return {
        "parts": {
            "encoders": [dict(object_expert.ENCODER), dict(reading_expert.ENCODER)],
            "experts": {"kind": "channel_concat"},
            "tokens": {"kind": "pixel_shuffle", "factor": 2},
            "connector": {"kind": "positional_mlp", "hidden": 512},
            "coupling": {"kind": "prefix"},
        },
        "text_config": {
            "model_type": "llama",
            "hidden_size": width,
            "intermediate_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "tie_word_embeddings": True,
            "max_position_embeddings": 1024,
        },
    }


WEIGHTS = {
    "odd": 3.0,
    "number": 2.0,
    "category": 2.0,
    "count": 2.0,
    "position": 1.5,
    "distance": 1.5,
    "size": 1.5,
    "attribute": 0.6,
}


def nano() -> Recipe:
    """Experts frozen while the language model learns to read them: answers, and the name of what each visual token shows.

    Without the names (`questions.naming`) a language model of ten layers still knew only colours and counts after hundreds of
    steps. AdamW's rate is high because it moves the embeddings.
    """
    return Recipe(
        name="nano",
        about="Reference vision-language model of the built-in world.",
        model=model(layers=10),
        start=dict(EXPERTS),
        worlds=[WorldConfig(kinds={"scene": 0.66, "text": 0.20, "chart": 0.14})],
        questions=Questions(naming=0.3, weights=dict(WEIGHTS)),
        training=TrainConfig(
            stages=[Stage(name="instruct", steps=8000, train={"*": 1.0, "encoders.*": 0.0})],
            schedule=Schedule(kind="wsd", warmup=100, decay=0.35, final=0.02),
            optim=OptimConfig(lr=1.5e-2, muon_lr=0.02),
            batch_size=24,
            compile="off",
        ),
    )
