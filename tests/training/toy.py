"""A small model with the trainer's interface, and data for it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tessera.training.data import Batches
from tessera.training.log import Event
from tessera.training.plan import OptimConfig, Schedule, Stage, TrainConfig
from tessera.training.trainer import Trainer

WORDS = 16


class ToyVLM(nn.Module):
    """Encoder -> connector -> a mixing layer over [image, tokens]; per-token loss with weights."""

    def __init__(self, width: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        generator = torch.random.get_rng_state()
        torch.manual_seed(5)
        self.encoder = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.Flatten(2))
        self.connector = nn.Linear(width, width)
        self.embedding = nn.Embedding(WORDS, width)
        self.blocks = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(2 * width, width))
        self.norm = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, WORDS, bias=False)
        self.lm_head.weight = self.embedding.weight
        self.language_model = nn.ModuleList([self.embedding, self.blocks, self.norm, self.lm_head])
        torch.random.set_rng_state(generator)

    def sockets(self) -> dict[str, nn.Module]:
        return {
            "encoders.0": self.encoder,
            "connector": self.connector,
            "language_model": self.language_model,
        }

    def forward(self, input_ids: Tensor, pixel_values: Tensor, labels: Tensor, loss_weights: Tensor) -> Any:
        image = self.connector(self.encoder(pixel_values).mean(-1))
        hidden = self.embedding(input_ids) + image[:, None]
        logits = self.lm_head(self.norm(hidden + self.blocks(hidden)))[:, :-1]
        losses = nn.functional.cross_entropy(
            logits.float().flatten(0, 1), labels[:, 1:].flatten(), reduction="none", ignore_index=-100
        )
        weights = loss_weights[:, 1:].flatten()
        return SimpleNamespace(loss_sum=(losses * weights).sum(), loss_weight=weights.sum())


def sample(index: int) -> dict[str, np.ndarray]:
    """One sample; its length of answer depends on the index."""
    random = np.random.default_rng([3, index])
    ids = random.integers(0, WORDS, 8)
    labels = np.where(np.arange(8) < 3 + index % 4, -100, ids)
    weights = np.where(labels >= 0, max(1, (labels >= 0).sum()) ** -0.5, 0).astype(np.float32)
    pixels = random.standard_normal((3, 8, 8)).astype(np.float32)
    return dict(input_ids=ids, labels=labels, loss_weights=weights, pixel_values=pixels)


def collate(indices: Any) -> dict[str, Tensor]:
    samples = [sample(i) for i in indices]
    return {key: torch.from_numpy(np.stack([s[key] for s in samples])) for key in samples[0]}


def settings(steps: int = 6, **changes: Any) -> TrainConfig:
    """A small run on the CPU."""
    values: dict[str, Any] = dict(
        stages=[Stage(steps=steps)],
        batch_size=4,
        precision="fp32",
        compile="off",
        device="cpu",
        progress=False,
        optim=OptimConfig(lr=1e-2),
        schedule=Schedule(warmup=2),
    )
    return TrainConfig(**(values | changes))


def data(config: TrainConfig, length: int | None = None) -> Batches:
    return Batches(collate, config, length)


def records(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[float]:
    return [record["loss"] for record in records(out) if "loss" in record]


def train(out: Path, config: TrainConfig, model: ToyVLM | None = None, **how: Any) -> ToyVLM:
    model = model or ToyVLM()
    Trainer(model, data(config), config, out, **how).run()
    return model


class Killed(Exception):
    pass


def kill_after(step: int) -> Any:
    def on_event(event: Event) -> None:
        if event.kind == "step" and event.step == step:
            raise Killed

    return on_event
