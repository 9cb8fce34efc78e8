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
    write_json(folder / "preconditions.json", found)
    write_card(folder, result, blind, how, name=name, preconditions=found)
    print(name, f"{result.accuracy:.3f} blind {blind.accuracy:.3f}", {k: round(t.accuracy, 3) for k, t in result.types.items()})


if __name__ == "__main__":
    for wanted in sys.argv[1:] or REFERENCES:
        measure(wanted)
