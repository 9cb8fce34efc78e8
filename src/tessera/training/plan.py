"""What a training run does: stages, learning rates, schedule, precision. Plain data, no torch.

A stage trains the sockets it names and freezes all others:

    TrainConfig(stages=[
        Stage(name="align", steps=200, train={"connector": 1.0}),
        Stage(name="instruct", steps=4000, train={"*": 1.0, "encoders.*": 0.3}),
    ])
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable
from dataclasses import field
from typing import Any, Literal

from tessera.config import config
from tessera.errors import UserError, unknown


@config
class Schedule:
    """Learning-rate factor over ONE stage: linear warm-up, then `cosine`, `wsd` or `constant`.

    wsd (warm-up, stable, decay; arXiv 2404.06395): flat, then linear to `final` over the last `decay`.
    """

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    warmup: int = 200
    """Steps of linear warm-up; at most a tenth of the stage is used."""
    final: float = 0.05
    """Fraction of the peak rate at the last step."""
    decay: float = 0.3
    """wsd only: fraction of the stage's steps that decay."""

    def factor(self, step: int, steps: int) -> float:
        """Factor in (0, 1] for step 0..steps-1 of a stage of `steps` steps."""
        warmup = min(self.warmup, max(1, steps // 10)) if self.warmup else 0
        if step < warmup:
            return (step + 1) / warmup
        if self.kind == "constant":
            return 1.0
        if self.kind == "wsd":
            left = (steps - step) / max(1.0, self.decay * steps)
            return self.final + (1 - self.final) * min(1.0, left)
        done = (step - warmup) / max(1, steps - warmup)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


@config
class OptimConfig:
    """Muon for hidden matrices and AdamW for the rest (`muon`), or AdamW for everything (`adamw`)."""

    kind: Literal["muon", "adamw"] = "muon"
    lr: float = 1e-3
    """Peak rate of AdamW."""
    muon_lr: float = 0.02
    """Peak rate of Muon, whose updates have orthonormal rows or columns."""
    weight_decay: float = 0.05
    """Decoupled decay of AdamW, on parameters with two or more dimensions."""
    muon_weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    momentum: float = 0.95
    clip: float = 1.0
    """Largest norm of the whole gradient; 0 = not clipped."""


@config
class Stage:
    """A stretch of training in which the same sockets train."""

    name: str = "train"
    steps: int = 1000
    train: dict[str, float] = field(default_factory=lambda: {"*": 1.0})
    """Socket name or glob -> learning-rate multiplier. The last pattern that matches counts; a socket that
    none matches, or with multiplier 0, is frozen: no gradients, eval mode, weights stay bit for bit."""
    schedule: Schedule | None = None
    """In place of the run's schedule."""
    optim: OptimConfig | None = None
    """In place of the run's optimiser settings."""


@config
class TrainConfig:
    """A whole training run."""

    stages: list[Stage] = field(default_factory=lambda: [Stage()])
    optim: OptimConfig = field(default_factory=OptimConfig)
    schedule: Schedule = field(default_factory=Schedule)
    batch_size: int = 32
    """Samples per optimiser step, over all processes and micro-batches together."""
    accumulation: int = 1
    """Micro-batches that each process runs per step; the result equals the big batch."""
    seed: int = 0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Autocast type; weights stay float32. `auto` measures a matrix product in both."""
    compile: Literal["auto", "on", "off"] = "auto"
    """`auto` compiles runs of more than 2,000 steps. A compiled run resumes equal to rounding, not bits:
    sequences of several lengths are compiled in the order in which they come."""
    device: Literal["auto", "cpu"] = "auto"
    workers: int = 0
    """Processes that prepare batches ahead; 0 = one thread in this process."""
    prefetch: int = 4
    """Batches prepared ahead (per worker process, if there are any)."""
    save_every: int = 500
    """Steps between checkpoints; 0 = at the end and on interruption only."""
    log_every: int = 50
    """Steps between lines (where there is no terminal) and TensorBoard points; log.jsonl has every step."""
    tensorboard: bool = False
    progress: bool = True
    cache_gb: float = 2.0
    """Bound on stored outputs of frozen encoders (finite data only); 0 = nothing is stored."""
    unused_parameters: bool = False
    """Several processes only: some trained parameters take no part in some steps."""

    @property
    def steps(self) -> int:
        """Optimiser steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def check(self) -> None:
        """Raises `UserError` for values that cannot be trained with."""
        if not self.stages:
            raise UserError("training.stages is empty; a run needs at least one stage.")
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise UserError(f"two stages are called {name!r}; names of stages must differ.")
        for stage in self.stages:
            if stage.steps < 1:
                raise UserError(f"stage {stage.name!r} has {stage.steps} steps; at least 1 is needed.")
            for pattern, multiplier in stage.train.items():
                if not (multiplier >= 0 and math.isfinite(multiplier)):
                    raise UserError(
                        f"stage {stage.name!r}: the learning-rate multiplier of {pattern!r} is {multiplier}; "
                        "it must be 0 (frozen) or positive."
                    )
        for key, least in (("batch_size", 1), ("accumulation", 1), ("prefetch", 1), ("log_every", 1)):
            if getattr(self, key) < least:
                raise UserError(f"training.{key} is {getattr(self, key)}; at least {least} is needed.")
        for key in ("workers", "save_every"):
            if getattr(self, key) < 0:
                raise UserError(f"training.{key} is {getattr(self, key)}; it cannot be negative.")
        if self.batch_size < self.accumulation:
            raise UserError(f"training.batch_size is {self.batch_size}; {self.accumulation} micro-batches need more.")


HARMLESS = (
    "compile",
    "device",
    "workers",
    "prefetch",
    "save_every",
    "log_every",
    "tensorboard",
    "progress",
    "cache_gb",
)
"""Fields of `TrainConfig` that may change between a checkpoint and its resumption."""


def multipliers(stage: Stage, sockets: Iterable[str]) -> dict[str, float]:
    """Learning-rate multiplier of each socket in `stage`; 0 = frozen.

    Raises `UserError` when a pattern matches no socket (with the nearest names) or nothing is left to train.
    """
    names = list(sockets)
    result = dict.fromkeys(names, 0.0)
    for pattern, multiplier in stage.train.items():
        matched = fnmatch.filter(names, pattern)
        if not matched:
            raise unknown(f"socket in stage {stage.name!r}:", pattern, names)
        for name in matched:
            result[name] = float(multiplier)
    if not any(result.values()):
        raise UserError(f"stage {stage.name!r} trains nothing. Name sockets in `train`: {', '.join(names)}.")
    return result


def stage_of(config: TrainConfig, step: int) -> tuple[int, int]:
    """(index of the stage, step within it) of global step 0..steps-1."""
    for index, stage in enumerate(config.stages):
        if step < stage.steps:
            return index, step
        step -= stage.steps
    return len(config.stages) - 1, config.stages[-1].steps


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """Sentences "path was A, is B" for every leaf in which two plain values (as `to_dict` gives) differ.

    Keys that only `new` has are passed over: they were added since `old` was written.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        pairs = [(key, value, new.get(key)) for key, value in old.items()]
        if path.endswith(".train"):
            pairs += [(key, None, value) for key, value in new.items() if key not in old]
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return [] if old == new else [f"{path} was {old}, is {new}"]
    return [line for key, a, b in pairs for line in differences(a, b, f"{path}.{key}" if path else key)]
