"""Processes and devices: what the trainer needs of accelerate and torch."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tessera.errors import UserError
from tessera.training.optim import MuonAdamW
from tessera.training.plan import TrainConfig


def make_accelerator(config: TrainConfig) -> Any:
    """An `accelerate.Accelerator`: launcher, devices and FSDP come from its own configuration.

    Mixed precision is the trainer's own business (`autocast`). Raises `UserError` without accelerate, or when
    the batch is too small for the processes.
    """
    try:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs
    except ImportError as error:
        raise UserError("training needs the package accelerate: pip install accelerate.") from error
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    kwargs = DistributedDataParallelKwargs(find_unused_parameters=config.unused_parameters)
    accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[kwargs])
    shares = config.accumulation * accelerator.num_processes
    if config.batch_size < shares:
        raise UserError(
            f"training.batch_size is {config.batch_size}, but {config.accumulation} micro-batches on "
            f"{accelerator.num_processes} processes need {shares} samples at least."
        )
    return accelerator


def is_sharded(accelerator: Any) -> bool:
    """Whether accelerate is configured for FSDP."""
    return bool(accelerator.distributed_type.name == "FSDP")


def wrap(accelerator: Any, model: nn.Module, optimizer: MuonAdamW) -> nn.Module:
    """`model` itself, or its wrapper for several processes. Anything wrapped before is let go."""
    if is_sharded(accelerator):
        prepared, _ = accelerator.prepare(model, optimizer)
        return prepared
    if accelerator.num_processes == 1:
        return model
    accelerator.free_memory()
    return accelerator.prepare_model(model)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """bfloat16 autocast for precision "bf16"; else one that does nothing."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def seed_step(seed: int, step: int, process: int) -> None:
    """Seeds torch, numpy and random from (seed, step, process).

    So dropout does not depend on what happened before (an evaluation, an interruption), and there is no
    random state to keep.
    """
    first, second = (int(x) for x in np.random.SeedSequence([seed, step, process]).generate_state(2))
    torch.manual_seed((first << 32) + second)
    random.seed(first)
    np.random.seed(second)


def loss_of(output: Any) -> tuple[Tensor, Tensor]:
    """(summed loss, weight), scalars; of a model that gives `loss` alone, each micro-batch weighs 1."""
    loss_sum, weight = getattr(output, "loss_sum", None), getattr(output, "loss_weight", None)
    if loss_sum is not None and weight is not None:
        return loss_sum, torch.as_tensor(weight, device=loss_sum.device)
    loss = getattr(output, "loss", None)
    if loss is None:
        raise UserError("the model returned no loss: the batch needs `labels`, the output `loss_sum` and `loss_weight`.")
    return loss, loss.new_ones(())


def update(optimizer: MuonAdamW, scale: float, clip: float) -> float:
    """Multiplies all gradients by `scale`, clips their norm to `clip` (0: not) and makes a step.

    Returns the norm before clipping; if it is not finite, nothing is changed.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    total = torch.nn.utils.get_total_norm(gradients)
    whole = getattr(total, "full_tensor", None)
    norm = float(total if whole is None else whole()) * scale
    if math.isfinite(norm):
        torch._foreach_mul_(gradients, scale * min(1.0, clip / (norm + 1e-6)) if clip else scale)
        optimizer.step()
    return norm
