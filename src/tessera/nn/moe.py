"""A mixture of experts in the place of an MLP: a router sends every token to its k best experts, each of bounded capacity.

Shapes: N tokens, W channels, E experts, k experts per token.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ROUTER = "router.weight"


@dataclass(frozen=True, slots=True)
class Routing:
    """Where N tokens went.

    probabilities [N, E] float32, softmax of the router
    experts       [N, k] int64, from the most probable on
    weights       [N, k] float32, of each expert's output (see `route`); 0 where the expert was full or the token is padding
    real          [N] bool, False at padding
    """

    probabilities: Tensor
    experts: Tensor
    weights: Tensor
    real: Tensor

    def load(self) -> Tensor:
        """[E]: share of the real tokens' k choices that went to each expert, dropped ones not counted."""
        went = F.one_hot(self.experts, self.probabilities.shape[1]) * (self.weights > 0)[..., None]
        return went.sum((0, 1)) / (self.real.sum().clamp_min(1) * self.experts.shape[1])

    def balance(self) -> Tensor:
        """E sum_i F_i G_i (Switch Transformer, arXiv:2101.03961): F_i the share of tokens whose first choice is expert i, G_i its
        mean probability; 1 where both are even."""
        count = self.real.sum().clamp_min(1)
        real = self.real[:, None].to(self.probabilities.dtype)
        first = (F.one_hot(self.experts[:, 0], self.probabilities.shape[1]) * real).sum(0) / count
        return self.probabilities.shape[1] * (first * (self.probabilities * real).sum(0) / count).sum()


def route(logits: Tensor, k: int, capacity: float | None, real: Tensor | None = None) -> Routing:
    """Logits [N, E] -> where each token goes.

    capacity: an expert takes at most ceil(capacity k N / E) tokens, first choices before second ones and earlier tokens before
    later; None: as many as come. For k > 1 the weights of the experts that take a token are renormalised to sum to 1. For k = 1
    the only weight is the router's probability (Switch Transformer, section 2.1): renormalised it would be 1, and the router
    would learn nothing from the loss. Padding (`real` [N] False) is sent nowhere and fills no place.
    """
    count, experts = logits.shape
    real = torch.ones(count, dtype=torch.bool, device=logits.device) if real is None else real
    probabilities = logits.float().softmax(-1)
    weights, chosen = probabilities.topk(k, dim=-1)
    taken = real[:, None].expand(count, k)
    if capacity is not None:
        room = math.ceil(capacity * k * int(real.sum()) / experts)
        # Queue of each expert: all first choices in the order of the tokens, then all second ones.
        queue = (F.one_hot(chosen.T.reshape(-1), experts) * taken.T.reshape(-1, 1)).cumsum(0)
        place = queue.gather(1, chosen.T.reshape(-1, 1)).view(k, count).T
        taken = taken & (place <= room)
    weights = weights * taken
    if k > 1:
        weights = weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(weights.dtype).eps)
    return Routing(probabilities, chosen, weights, real)


class MixtureOfExperts(nn.Module):
    """E copies of an MLP and a linear router. [..., W] -> [..., W]; a token that no expert takes gets zeros.

    A dense MLP's weights may be loaded into it: every expert then gets them (sparse upcycling), and the router keeps its own.
    With k > 1 it then answers as the dense MLP; with k = 1 its output is the dense one times the router's probability.

    real     [...] bool, set from outside before a forward pass: False at padding; None: there is none
    routing  of the last forward pass
    """

    def __init__(self, mlp: nn.Module, width: int, experts: int, k: int, capacity: float | None = None) -> None:
        """capacity: bounds the experts in training, see `route`; outside of it they take whatever comes."""
        super().__init__()
        self.k, self.capacity = k, capacity
        self.experts = nn.ModuleList(copy.deepcopy(mlp) for _ in range(experts))
        self.router = nn.Linear(width, experts, bias=False)
        self.real: Tensor | None = None
        self.routing: Routing | None = None
        self._dense = frozenset(mlp.state_dict())
        self.register_load_state_dict_pre_hook(_upcycle)

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to the last forward pass: a copy is of the layer."""
        return {**self.__dict__, "real": None, "routing": None}

    def forward(self, x: Tensor) -> Tensor:
        """See the class."""
        flat = x.reshape(-1, x.shape[-1])
        with torch.autocast(x.device.type, enabled=False):  # choices should not depend on the precision of the products
            logits = F.linear(flat.float(), self.router.weight.float())
        real = None if self.real is None else self.real.reshape(-1)
        self.routing = found = route(logits, self.k, self.capacity if self.training else None, real)
        out = torch.zeros_like(flat)
        for index, expert in enumerate(self.experts):
            token, choice = ((found.experts == index) & (found.weights > 0)).nonzero(as_tuple=True)
            made = expert(flat[token]) * found.weights[token, choice, None].to(flat.dtype)
            out = out.index_add(0, token, made.to(out.dtype))
        return out.view_as(x)


def _upcycle(module: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Hands a dense MLP's weights to every expert."""
    if not all(prefix + name in state for name in module._dense):
        return
    for name in module._dense:
        value = state.pop(prefix + name)
        state.update({f"{prefix}experts.{i}.{name}": value for i in range(len(module.experts))})
    state.setdefault(prefix + ROUTER, module.router.weight.detach())
