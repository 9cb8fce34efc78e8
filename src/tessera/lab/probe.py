"""Linear maps of frozen features, fitted to their optimum by scikit-learn. Imports torch: protocols import it in functions.

Shapes: P training rows, T test rows, D features, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def linear_probe(train: Tensor, labels: Tensor, test: Tensor, classes: int, ridge: float = 1e-3) -> Tensor:
    """Log-probabilities [T, C] float64 of test rows by a multinomial logistic regression on the training rows: the mean
    cross-entropy and `ridge` times the square of the weights, the biases free. A class without training rows has -inf.

    train [P, D], labels [P] int64 below `classes`, test [T, D]. Both are standardised here, by the training rows.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (2 * ridge * len(train)), max_iter=1000))
    model.fit(train.double().numpy(), labels.numpy())
    found = torch.full((len(test), classes), -torch.inf, dtype=torch.float64)
    found[:, torch.from_numpy(model.classes_)] = torch.from_numpy(model.predict_log_proba(test.double().numpy()))
    return found


def ridge(train: Tensor, targets: Tensor, test: Tensor, weight: float = 1.0) -> Tensor:
    """What a ridge regression on the training rows says of test rows, [T, C] float64: the squared errors and `weight` times the
    squares of the weights, that of the constant included.

    train [P, D], targets [P, C], test [T, D]. Both are standardised here, by the training rows.
    """
    from sklearn.linear_model import Ridge

    x, at = (torch.cat([v, torch.ones(len(v), 1)], 1).double().numpy() for v in standardised(train, test))
    model = Ridge(alpha=weight, fit_intercept=False, solver="cholesky").fit(x, targets.double().numpy())
    return torch.from_numpy(model.predict(at))


def standardised(train: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    """Both [P, D] with the mean and the deviation of the training rows taken out."""
    mean, deviation = train.mean(0), train.std(0) + 1e-6
    return (train - mean) / deviation, (test - mean) / deviation


def probe_accuracy(train: Tensor, labels: Tensor, test: Tensor, wanted: Tensor) -> float:
    """Share of right classes on test rows of a probe that was fitted on the training rows."""
    said = linear_probe(train, labels, test, int(max(labels.max(), wanted.max())) + 1)
    return float((said.argmax(-1) == wanted).double().mean())
