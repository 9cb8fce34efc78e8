"""Soups against averages and choices written out."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tessera.config import build
from tessera.errors import UserError
from tessera.models.compression import Merger
from tessera.parts.compression.model_soups import ModelSoups, averaged, recalibrated


def part(**options: Any) -> ModelSoups:
    return ModelSoups(build(ModelSoups.Config, options))


def points(*places: float) -> list[nn.Linear]:
    """Models with one weight each."""
    made = [nn.Linear(1, 1, bias=False) for _ in places]
    for model, place in zip(made, places, strict=True):
        nn.init.constant_(model.weight, place)
    return made


def close_to_one(model: Any) -> float:
    return -abs(float(model.weight.detach()) - 1.0)


def test_the_uniform_soup_is_the_mean_of_every_tensor() -> None:
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()) for _ in range(3)]
    for number, model in enumerate(models):
        model[1].num_batches_tracked.fill_(number + 5)
        model[1].running_mean.normal_()
    soup = part(kind="uniform").merge(models)
    for name, value in soup.state_dict().items():
        all_of_them = [model.state_dict()[name] for model in models]
        if value.is_floating_point():
            torch.testing.assert_close(value, sum(all_of_them) / 3, rtol=0, atol=1e-6)
        else:
            assert int(value) == 5
    assert soup is not models[0] and isinstance(part(), Merger)


def test_half_precision_is_averaged_in_double() -> None:
    models = [model.half() for model in points(1.0, 1.0009765625, 1.0)]
    soup = part(kind="uniform").merge(models)
    assert soup.weight.dtype == torch.float16
    assert float(soup.weight.detach()) == float(torch.tensor((1.0 + 1.0009765625 + 1.0) / 3).half())


def greedy(places: list[float]) -> list[int]:
    """Recipe 1 of the paper, on numbers."""
    order = sorted(range(len(places)), key=lambda i: (abs(places[i] - 1), i))
    kept: list[int] = []
    for i in order:
        before = abs(sum(places[k] for k in kept) / len(kept) - 1) if kept else float("inf")
        after = abs(sum(places[k] for k in [*kept, i]) / (len(kept) + 1) - 1)
        if after <= before + 1e-9:
            kept.append(i)
    return kept


def test_the_greedy_choice_follows_the_recipe() -> None:
    for places in permutations((0.0, 1.75, 1.25, 0.5, -2.0)):
        assert part().ingredients(points(*places), close_to_one) == greedy(list(places))


def test_the_greedy_soup_is_never_worse_than_its_best_ingredient_on_what_it_was_chosen_by() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        models = points(*torch.randn(6, generator=generator).tolist())
        assert close_to_one(part().merge(models, close_to_one)) >= max(map(close_to_one, models)) - 1e-6


@pytest.mark.parametrize("by_tensor", [False, True])
def test_the_learned_soup_finds_the_mixture(by_tensor: bool) -> None:
    models = points(0.0, 3.0)

    def score(model: Any) -> Tensor:
        return -(model.weight - 1.0).square().sum()

    soup = part(kind="learned", steps=200, by_tensor=by_tensor).merge(models, score)
    assert float(soup.weight.detach()) == pytest.approx(1.0, abs=0.01)
    assert [float(m.weight.detach()) for m in models] == [0.0, 3.0]


def test_tensors_are_mixed_by_weights_of_their_own() -> None:
    models = [nn.Linear(1, 1), nn.Linear(1, 1)]
    for place, model in enumerate(models):
        nn.init.constant_(model.weight, place)
        nn.init.constant_(model.bias, place)

    def score(model: Any) -> Tensor:
        return -((model.weight - 0.9).square() + (model.bias - 0.1).square()).sum()

    soup = part(kind="learned", steps=400, by_tensor=True).merge(models, score)
    assert float(soup.weight.detach()) == pytest.approx(0.9, abs=0.02) and float(soup.bias.detach()) == pytest.approx(
        0.1, abs=0.02
    )


def test_statistics_are_taken_anew() -> None:
    torch.manual_seed(0)
    model = averaged([nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2)]).eval()
    x = torch.randn(64, 3)
    recalibrated(model, [{"input": block} for block in x.split(32)])
    hidden = model[0](x).detach()
    torch.testing.assert_close(model[1].running_mean, hidden.mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack([h.var(0) for h in hidden.split(32)]).mean(0))
    assert not model[1].training and model[1].momentum == 0.1


def test_what_cannot_be_averaged_is_refused() -> None:
    with pytest.raises(UserError, match=r"models 0 and 1 differ: bias is \[2\] in one, missing in the other"):
        part(kind="uniform").merge([nn.Linear(2, 2), nn.Linear(2, 2, bias=False)])
    with pytest.raises(UserError, match=r"weight is \[2, 2\] in one, \[2, 3\] in the other"):
        part().merge([nn.Linear(2, 2), nn.Linear(3, 2)], close_to_one)
    with pytest.raises(UserError, match="at least one model"):
        part(kind="uniform").merge([])
    with pytest.raises(UserError, match="a greedy soup needs a score on held-out data; kind='uniform' does without"):
        part().merge(points(1.0, 2.0))
    with pytest.raises(UserError, match="a score that has a gradient"):
        part(kind="learned").merge(points(1.0, 2.0), close_to_one)
    with pytest.raises(UserError, match="steps must be at least 1"):
        part(steps=0)
