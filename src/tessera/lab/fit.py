"""One short training loop for experiments, made of the trainer's own pieces: which sockets train, optimiser, schedule, clipping.

    losses = fit(model, batch_of_step, 200, seed=0, optim=OptimConfig(lr=3e-3), train=[{"*": 1.0, "encoders.*": 0.0}])

Everything is float32 on the CPU, without autocast, so that a verdict does not depend on the processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tessera.errors import TesseraError

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from tessera.training.plan import OptimConfig

BatchOfStep: TypeAlias = "Callable[[int, torch.Generator], Mapping[str, Tensor]]"
"""(step from 0, the generator of the data order) -> inputs of the model, with labels."""
WARMUP = 20
"""Steps of linear warm-up; the schedule takes a tenth of a stage at most."""


def fit(
    model: nn.Module,
    batch_of_step: BatchOfStep,
    steps: int,
    *,
    seed: int,
    optim: OptimConfig,
    train: Sequence[Mapping[str, float]],
    around: Callable[[int], AbstractContextManager[Any]] | None = None,
) -> list[float]:
    """Trains the model in place and leaves it in evaluation mode; the loss of every step.

    seed   of the data order alone: what draws from `batch_of_step`'s generator is the same for all arms
    train  a stage each, which share the steps: socket or pattern -> multiplier of the learning rate, as in a recipe's stages
    around what a step happens within, such as parts that are plugged in

    Raises `TesseraError` where nothing trains, a loss is not finite, or weights are not float32.
    """
    import torch

    from tessera.training.optim import build_optimizer
    from tessera.training.plan import Schedule, Stage, multipliers
    from tessera.training.stages import factors, freeze, sockets_of

    if not train or steps < len(train):
        raise TesseraError(f"{steps} steps cannot be shared by {len(train)} stages: each takes one at least.")
    if wrong := {p.dtype for p in model.parameters()} - {torch.float32}:
        raise TesseraError(f"experiments train in float32, not {', '.join(map(str, wrong))}.")
    trainable = {id(p) for p in model.parameters() if p.requires_grad}
    order = torch.Generator().manual_seed(seed)
    schedule, losses, sockets = Schedule(warmup=WARMUP), list[float](), sockets_of(model)
    for number, plan in enumerate(train):
        first, end = number * steps // len(train), (number + 1) * steps // len(train)
        rates = multipliers(Stage(train=dict(plan)), sockets)
        rated = factors(sockets, rates, trainable)
        if not rated:
            raise TesseraError(f"stage {number + 1} trains nothing: {dict(plan)}.")
        freeze(model, sockets, rates, rated)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = build_optimizer(model, rated, optim)
        for step in range(first, end):
            optimizer.set_factor(schedule.factor(step - first, end - first))
            with around(step) if around is not None else nullcontext():
                loss = model(**batch_of_step(step, order)).loss
                loss.backward()
            losses.append(float(loss.detach()))
            if losses[-1] != losses[-1] or abs(losses[-1]) == float("inf"):
                raise TesseraError(f"the loss of step {step + 1} is {losses[-1]}: the learning rate is too high for this model.")
            if optim.clip:
                torch.nn.utils.clip_grad_norm_(trained, optim.clip)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    model.eval()
    return losses


def descend(
    parameters: Iterable[nn.Parameter],
    loss_of: Callable[[torch.Generator], Tensor],
    steps: int,
    *,
    lr: float,
    seed: int,
    weight_decay: float = 0.01,
) -> None:
    """AdamW on parameters that belong to no composed model: heads over features, small towers. Clipped at norm 1; the rate rises
    for `WARMUP` steps, a tenth of all at most, and falls over the second half.

    loss_of: the generator of the data order, a seed's own -> a number
    """
    import torch

    order, trained = torch.Generator().manual_seed(seed), [p for p in parameters if p.requires_grad]
    optimizer, warmup = torch.optim.AdamW(trained, lr, weight_decay=weight_decay), max(1, min(WARMUP, steps // 10))
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / warmup, 2 * (steps - step) / steps)
        loss_of(order).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def fit_rows(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    data: tuple[Tensor, Tensor],
    *,
    steps: int,
    batch: int,
    lr: float,
    seed: int,
) -> None:
    """Trains the model in place by `loss(inputs, labels)` on random rows of (inputs [R, ...], labels [R, ...]), and leaves it in
    evaluation mode."""
    import torch

    def loss_of(order: torch.Generator) -> Tensor:
        rows = torch.randint(len(data[1]), (batch,), generator=order)
        return loss(data[0][rows], data[1][rows])

    model.train()
    descend(model.parameters(), loss_of, steps, lr=lr, seed=seed, weight_decay=0.05)
    model.eval()


def restored(model: nn.Module, folder: Path) -> bool:
    """Whether the folder holds weights that `keep` wrote; they are then the model's."""
    from safetensors.torch import load_file

    path = folder / "weights.safetensors"
    if not path.exists():
        return False
    model.load_state_dict(load_file(path), strict=False)
    return True


def keep(model: nn.Module, folder: Path) -> None:
    """Writes the model's floating-point weights into the folder."""
    from safetensors.torch import save_file

    from tessera.io import atomic_write

    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items() if value.is_floating_point()}
    with atomic_write(folder / "weights.safetensors") as path:
        save_file(state, path)
