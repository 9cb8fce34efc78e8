"""Model soups average the weights of several fine-tuned models, and get a better model for the price of one.

Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time", 2022, arXiv:2203.05482. Models that were fine-tuned from one initialisation with other learning rates, data
orders or augmentations lie in one basin of the loss, so the mean of their weights is as good as the mean of their answers.
The uniform soup takes all; the greedy soup adds models in the order of their accuracy on held-out data, each only if the soup
does not get worse by it; the learned soup finds mixing weights, of models or of every tensor, by gradient on held-out data.

Deviations: the greedy soup adds a model that changes nothing, as the paper's recipe says (the released code wants it to get
better). The learned soup has no learned temperature and stays a mean: mixing weights are a softmax. Means are taken in double
precision. Whole-number buffers are the first ingredient's; statistics of BatchNorm are averaged and can be taken anew
(`recalibrated`).

Shapes: K ingredients; logits [B, C].
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from tessera.config import config
from tessera.errors import UserError
from tessera.models.compression import Merger, Score, same_architecture
from tessera.registry import part

M = TypeVar("M", bound=nn.Module)


def mixed(models: Sequence[nn.Module], weights: Sequence[float]) -> dict[str, Tensor]:
    """The state that is the weighted sum of the models' states, in their dtypes; whole numbers are the first one's."""
    states = [model.state_dict() for model in models]
    found = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            total = sum(state[name].double() * weight for state, weight in zip(states, weights, strict=True))
            assert isinstance(total, Tensor)
            found[name] = total.to(first.dtype)
        else:
            found[name] = first.clone()
    return found


def averaged(models: Sequence[M], weights: Sequence[float] | None = None) -> M:
    """A copy of the first model with the mean weights of all; `weights` sum to 1. Raises `UserError` if they do not fit."""
    same_architecture(models)
    made = copy.deepcopy(models[0])
    made.load_state_dict(mixed(models, [1 / len(models)] * len(models) if weights is None else weights))
    return made


def number(score: float | Tensor) -> float:
    """A score without its gradient."""
    return float(score.detach()) if isinstance(score, Tensor) else float(score)


@torch.no_grad()
def recalibrated(model: M, batches: Iterable[Mapping[str, Any]]) -> M:
    """The model with the statistics of its BatchNorm layers taken anew over batches of its keyword arguments, in place."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    kept = [(layer.momentum, layer.training) for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over batches
        layer.train()
    try:
        for batch in batches if layers else ():
            model(**batch)
    finally:
        for layer, (momentum, training) in zip(layers, kept, strict=True):
            layer.momentum = momentum
            layer.train(training)
    return model


class _Scored(nn.Module):
    """A score as a module's forward, so that it can be taken with other weights than the model's own."""

    def __init__(self, model: nn.Module, score: Score) -> None:
        super().__init__()
        self.model, self.score = model, score

    def forward(self) -> Any:
        return self.score(self.model)


@part("model_soups", socket="compression", catalog=317)
class ModelSoups(Merger):
    """The uniform soup, the greedy one, and the learned one."""

    @config
    class Config:
        """kind: who is in the soup; the learned one needs a score with a gradient.
        steps, lr: of the learned soup, Adam on the mixing weights' logits.
        by_tensor: the learned soup mixes every tensor by weights of its own."""

        kind: Literal["uniform", "greedy", "learned"] = "greedy"
        steps: int = 50
        lr: float = 0.05
        by_tensor: bool = False

        def validate_steps(self) -> None:
            if self.steps < 1 or self.lr <= 0:
                raise ValueError(f"steps must be at least 1 and lr above 0, not {self.steps} and {self.lr}.")

    def __init__(self, config: Config) -> None:
        self.config = config

    def merge(self, models: Sequence[M], score: Score | None = None) -> M:
        """The soup; `score` says how good a model is on held-out data, more is better. Raises `UserError` without one where
        it is needed, and for models of different architectures."""
        same_architecture(models)
        if self.config.kind == "uniform":
            return averaged(models)
        if score is None:
            raise UserError(f"a {self.config.kind} soup needs a score on held-out data; kind='uniform' does without.")
        if self.config.kind == "learned":
            return self._learned(models, score)
        return averaged([models[i] for i in self.ingredients(models, score)])

    def ingredients(self, models: Sequence[nn.Module], score: Score) -> list[int]:
        """Indices of the models in the greedy soup, in the order in which they were added."""
        own = [number(score(model)) for model in models]
        first, *others = sorted(range(len(models)), key=lambda i: (-own[i], i))
        chosen, best = [first], own[first]
        for index in others:
            reached = number(score(averaged([models[i] for i in [*chosen, index]])))
            if reached >= best:
                chosen.append(index)
                best = reached
        return chosen

    def _learned(self, models: Sequence[M], score: Score) -> M:
        made = averaged(models)
        states = [model.state_dict() for model in models]
        floating = [name for name, value in states[0].items() if value.is_floating_point()]
        stacked = {name: torch.stack([state[name].detach() for state in states]) for name in floating}
        own = {name for name, _ in made.named_parameters(remove_duplicate=False)}  # buffers take no gradient
        rows = len(floating) if self.config.by_tensor else 1
        logits = torch.zeros(rows, len(models), device=stacked[floating[0]].device, requires_grad=True)
        optimiser, scored = torch.optim.Adam([logits], self.config.lr), _Scored(made, score)

        def state() -> dict[str, Tensor]:
            found, weights = {}, logits.softmax(1).expand(len(floating), -1)
            for name, weight in zip(floating, weights, strict=True):
                used = weight if name in own else weight.detach()
                found[name] = torch.tensordot(used.to(stacked[name].dtype), stacked[name], 1)
            return found

        for _ in range(self.config.steps):
            reached = torch.func.functional_call(scored, {f"model.{name}": value for name, value in state().items()}, ())
            if not (isinstance(reached, Tensor) and reached.requires_grad):
                raise UserError("a learned soup needs a score that has a gradient, such as minus a loss on held-out data.")
            optimiser.zero_grad()
            (-reached).backward()
            optimiser.step()
        with torch.no_grad():
            made.load_state_dict({name: value.clone() for name, value in state().items()}, strict=False)
        return made
