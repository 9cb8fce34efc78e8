"""The reference vision-language model: two experts, a projector with positions, a language model of eight layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tessera.recipes import object_expert, reading_expert
from tessera.recipes.recipe import Recipe, StageData
from tessera.training.options import Questions
from tessera.training.plan import OptimConfig, Schedule, Stage, TrainConfig
from tessera.world import WorldConfig

EXPERTS = {"encoders.0": "object-expert", "encoders.1": "reading-expert"}


def language(layers: int, width: int = 256, heads: int = 4, hidden: int = 704, head_dim: int | None = None) -> dict[str, Any]:
    """A Qwen3-type language model of `layers` layers, whose normalised queries and keys let a small model look things up sooner
    than a Llama; the vocabulary is filled in from the tokenizer."""
    return {
        "model_type": "qwen3",
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": head_dim or width // heads,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
    }


def model(layers: int = 8, width: int = 224, heads: int = 4, hidden: int = 608, head_dim: int | None = None) -> dict[str, Any]:
    """The composed model: every patch of 8 x 8 pixels of both experts is one visual token, 196 of an image of 112 x 112."""
    return {
        "parts": {
            "encoders": [dict(object_expert.ENCODER), dict(reading_expert.ENCODER)],
            "experts": {"kind": "channel_concat"},
            "tokens": {"kind": "identity"},
            "connector": {"kind": "positional_mlp", "hidden": 512},
            "coupling": {"kind": "prefix"},
        },
        "text_config": language(layers, width, heads, hidden, head_dim),
    }


def shipped() -> dict[str, Any]:
    """The model whose weights ship. The rotary base keeps the frequencies that its heads of 56 channels had at first."""
    made = model(head_dim=64)
    made["text_config"]["rope_theta"] = 10000.0 ** (64 / 56)
    return made


TRAINED = {"*": 1.0, "encoders.*": 0.0}
WEIGHTS = {
    "odd": 3.0,
    "number": 2.0,
    "category": 2.0,
    "count": 2.0,
    "attribute": 2.0,
    "reading": 2.0,
    "distance": 2.0,
    "chart": 1.5,
    "position": 1.5,
    "size": 1.5,
}
LATER = {"size": 3.0, "count": 3.0, "odd": 3.0, "reading": 2.5, "distance": 2.5, "chart": 2.0, "total": 1.5, "multihop": 1.5}
"""What is learned late, once the rest is known."""


def nano() -> Recipe:
    """Experts frozen while the language model learns to read them, from what is easy to learn to the whole world.

    From the beginning with 196 tokens. The shipped weights came a shorter way: they learned with 49 tokens and were widened then
    (`references/nano` holds every step).

    Its first stage trains on nothing but lists of names with their places, in an order that cannot be guessed: with a mixture of
    questions from the start, the path from a name to where it is seen does not form in thousands of steps; alone it forms in a
    few hundred and then carries the rest. Attributes have a stage of their own for the same reason.
    Besides, every visual token is followed by the name of what it shows (`questions.naming`), or by its attributes or kind
    (`questions.looks`).
    """
    few = WorldConfig(kinds={"scene": 1.0}, things=(1, 4))
    scenes = WorldConfig(kinds={"scene": 1.0})
    written = WorldConfig(kinds={"text": 1.0}, things=(1, 4))
    kinds = {"scene": 0.66, "text": 0.20, "chart": 0.14}
    alone = Questions(several=(0.0, 0.0), captions=(0.0, 0.0, 0.0), naming=0.3)
    placing = replace(alone, text_tokens=80, lists=1.0, forms={"places": 1.0}, most=0)
    looking = replace(placing, text_tokens=144, looks=0.5, forms={"looks": 2.0, "kinds": 1.0, "places": 1.0})
    asking = replace(alone, text_tokens=144, lists=0.6, weights=dict(WEIGHTS))
    everything = Questions(
        text_tokens=144,
        captions=(0.10, 0.05, 0.03),
        lists=0.5,
        several=(0.14, 0.09),
        naming=0.3,
        weights=dict(WEIGHTS),
    )
    steady = Schedule(kind="wsd", warmup=50, final=0.3)
    return Recipe(
        name="nano",
        about="Reference vision-language model of the built-in world.",
        model=shipped(),
        start=dict(EXPERTS),
        lessons={
            "places": StageData(worlds=[few, few, written], questions=placing),
            "few": StageData(worlds=[few, few, few, written], questions=asking),
            "looks": StageData(worlds=[few, scenes, scenes, written], questions=looking),
            "again": StageData(questions=replace(everything, looks=0.4, weights=dict(LATER))),
        },
        worlds=[WorldConfig(kinds=kinds)],
        questions=everything,
        training=TrainConfig(
            stages=[
                Stage(name="places", steps=1000, train=dict(TRAINED), schedule=steady),
                Stage(name="few", steps=700, train=dict(TRAINED), schedule=steady),
                Stage(name="many", steps=3500, train=dict(TRAINED), schedule=Schedule(warmup=50, final=0.02)),
                Stage(name="looks", steps=800, train=dict(TRAINED), schedule=steady),
                Stage(name="again", steps=3600, train={**TRAINED, "*": 0.7}, schedule=Schedule(warmup=50, final=0.02)),
            ],
            optim=OptimConfig(lr=3e-3, muon_lr=0.02),
            batch_size=24,
            compile="off",
        ),
    )
