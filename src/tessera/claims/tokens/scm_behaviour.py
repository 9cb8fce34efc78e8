"""Scores of fixed attention."""

from __future__ import annotations

from tessera.lab.behaviour import Numbers, summary


def behaviour() -> Numbers:
    """Two rows whose detail layers differ in length, one of them padded."""
    import torch

    from tessera.parts.tokens.scm import scores

    attention = torch.rand(2, 9, 9, generator=torch.Generator().manual_seed(0)).tril()
    detail = torch.tensor([[0, 1, 1, 1, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 0, 0, 0]]).bool()
    real = torch.tensor([[1] * 9, [0] + [1] * 8]).bool()
    return {"scores": summary(scores(attention, detail, real), 6)}
