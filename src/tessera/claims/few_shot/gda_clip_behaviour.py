"""Fits from features alone, with and without labels."""

from __future__ import annotations

from tessera.lab.behaviour import Numbers, summary


def behaviour() -> Numbers:
    """Precision, discriminant and means of fixed features."""
    import torch

    from tessera.parts.few_shot import gda_clip as gda

    x = torch.randn(24, 5, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(24) % 3
    means = gda.class_means(x, labels, 3)
    inverse = gda.precision(x - means[labels])
    weights, bias = gda.discriminant(means, inverse)
    prior = torch.tensor([0.5, 0.3, 0.2])
    other = gda.discriminant(means, inverse, prior)
    found = {"means": means, "inverse": inverse, "weights": weights, "bias": bias, "bias with a prior": other[1]}
    return {name: summary(value, 6) for name, value in found.items()}
