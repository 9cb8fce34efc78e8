"""How tokens are chosen."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tessera.errors import UserError
from tessera.generation.sampling import GREEDY, Chooser, Sampling, warpers

CPU = torch.device("cpu")


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    chosen, known = Chooser(GREEDY, CPU)(torch.tensor([[0.0, 2.0, 2.0, -torch.inf], [5.0, 0.0, 0.0, 0.0]]))
    assert chosen.tolist() == [1, 0]
    assert known[0].item() == pytest.approx(-math.log(2 + math.exp(-2)), rel=1e-6)


def left(logits: Tensor, **options: float) -> list[list[bool]]:
    """Which tokens may be drawn."""
    return warpers(Sampling(temperature=1.0, **options))(None, logits).isfinite().tolist()  # type: ignore[arg-type]


def test_top_p_leaves_the_fewest_tokens_that_reach_it() -> None:
    logits = torch.tensor([[0.1, 0.5, 0.05, 0.35], [0.97, 0.01, 0.01, 0.01]]).log()
    assert left(logits, top_p=0.6) == [[False, True, False, True], [True, False, False, False]]
    assert left(logits, top_p=0.45)[0] == [False, True, False, False]
    assert left(logits, top_p=1e-6) == [[False, True, False, False], [True, False, False, False]]
    assert left(logits, top_p=1.0) == [[True] * 4] * 2


def test_top_k_leaves_the_likeliest_and_ties() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 2.0]])
    assert left(logits, top_k=2) == [[False, True, True, True]]
    assert left(logits, top_k=9) == left(logits, top_k=0) == [[True] * 4]


def test_temperature_shapes_the_draw() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]]).expand(20_000, 3)
    for temperature in (0.5, 2.0):
        chosen, known = Chooser(Sampling(temperature=temperature, seed=0), CPU)(logits)
        found = torch.bincount(chosen, minlength=3) / len(chosen)
        assert torch.allclose(found, (logits[0] / temperature).softmax(-1), atol=0.02)
        assert torch.allclose(known, logits[0].log_softmax(-1)[chosen]), "the probability is the model's own"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Sampling(**options)
