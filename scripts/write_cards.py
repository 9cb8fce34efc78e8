"""Measures the shipped reference models on the test split; writes evaluation.json, README.md and nano's preconditions.json.

python scripts/write_cards.py                 all of them
python scripts/write_cards.py nano-clip       some
"""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import tessera
from tessera.evaluation.card import write_card
from tessera.evaluation.experts import evaluate_expert
from tessera.evaluation.harness import evaluate
from tessera.evaluation.items import EvaluationConfig
from tessera.io import write_json
from tessera.lab import preconditions
from tessera.models.reference import REFERENCES, reference_folder
from tessera.recipes.recipe import recipe
from tessera.world import WorldConfig

QUESTIONS, IMAGES = 5400, 1000
TRAINED = (
    "In four steps, whose recipes are in `references/nano` of the repository: 9,600 steps of 24 samples with 49 visual tokens, a "
    "widening to 196 tokens and heads of 64 channels, then 2,900 and 2,600 steps of 16 samples. The recipe `nano` trains a "
    "model of the same shape from the beginning."
)
"""Of nano."""


def measure(name: str) -> None:
    """One model's measurement and card."""
    folder = reference_folder(name)
    how = recipe(name.replace("-", "_"))
    model, processor = tessera.load(name)
    size = int(getattr(model, "image_size", None) or model.encoder.image_size)
    world = WorldConfig(split="test", width=size, height=size)
    if how.task == "questions":
        _questions(folder, model, processor, EvaluationConfig(world=world, n=QUESTIONS), how, name)
        return
    result = evaluate_expert(model, processor, EvaluationConfig(world=world, n=IMAGES), name=name)
    write_json(folder / "evaluation.json", asdict(result))
    write_card(folder, result, None, how, name=name)
    print(name, {key: round(m.accuracy, 3) for key, m in result.measures.items()})


def _questions(folder: Path, model: Any, processor: Any, config: EvaluationConfig, how: Any, name: str) -> None:
    result = evaluate(model, processor, config, name=name)
    blind = evaluate(model, processor, config, name=name, blind=True)
    result.with_blind(blind).save(folder / "evaluation.json")
    found = preconditions.measure(model, processor)
    named = {f"without {socket}": f"without {source}" for socket, source in how.start.items()}
    found["encoders"] = {named.get(label, label): types for label, types in found["encoders"].items()}
    write_json(folder / "preconditions.json", found)
    write_card(folder, result, blind, how, name=name, preconditions=found, trained=TRAINED)
    print(name, f"{result.accuracy:.3f} blind {blind.accuracy:.3f}", {k: round(t.accuracy, 3) for k, t in result.types.items()})


if __name__ == "__main__":
    for wanted in sys.argv[1:] or REFERENCES:
        measure(wanted)
