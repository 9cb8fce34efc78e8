"""One linear layer over frozen features, fitted to its optimum. Imports torch; protocols import it inside functions.

Shapes: P rows, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def linear_probe(features: Tensor, labels: Tensor, classes: int, ridge: float = 1e-3, iterations: int = 60) -> Tensor:
    """Multinomial logistic regression with an L2 penalty on its weights, from zero by L-BFGS: weights [D + 1, C], bias last.

    features [P, D] float32, labels [P] int64. Features are expected to be standardised (`standardised`).
    """
    weight = torch.zeros(features.shape[1] + 1, classes, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight], max_iter=iterations, history_size=10, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        found = F.cross_entropy(features @ weight[:-1] + weight[-1], labels) + ridge * weight[:-1].square().sum()
        found.backward()
        return found

    optimiser.step(loss)
    return weight.detach()


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both [P, D] with the mean and the deviation of the training rows taken out."""
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    return (train - mean) / deviation, (test - mean) / deviation


def probe_accuracy(train: Tensor, labels: Tensor, test: Tensor, wanted: Tensor) -> float:
    """Share of right classes on test rows [P', D] of a probe that was fitted on the training rows."""
    seen, asked = standardised(train, test)
    weight = linear_probe(seen, labels, int(max(labels.max(), wanted.max())) + 1)
    return float(((asked @ weight[:-1] + weight[-1]).argmax(-1) == wanted).double().mean())
