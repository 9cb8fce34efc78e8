"""GDA-CLIP against its equations, its choices, and its other settings."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from tests.parts.few_shot.tiny import tiny_duals
from torch.nn import functional as F

from tessera.config import build
from tessera.errors import UserError
from tessera.models.few_shot import FrozenDual, Shots, views, zero_shot
from tessera.parts.few_shot.gda_clip import GDACLIP, class_means, discriminant, precision

NAMES = ["dog", "fire engine", "cat"]


@cache
def dual() -> FrozenDual:
    return tiny_duals(["a picture of a {name}."])["Tessera"]


def part(**options: Any) -> GDACLIP:
    return GDACLIP(build(GDACLIP.Config, {"views": 0} | options))


def blobs(count: int = 30, seed: int = 0, near: float = 0.15) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit features around one direction per class, and labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = F.normalize(torch.randn(3, 24, generator=torch.Generator().manual_seed(9)), dim=-1)
    labels = torch.arange(count) % 3
    return F.normalize(centres[labels] + near * torch.randn(count, 24, generator=generator), dim=-1), labels


def test_logits_are_the_sum_of_both_classifiers() -> None:
    features, labels = blobs()
    found = part(mixture=0.3, scale=50.0).fit_features(dual(), NAMES, features[None], labels)
    means = class_means(features, labels, 3)
    inverse = precision(features - means[labels])
    asked, _ = blobs(6, 1)
    expected = []
    for x in asked:
        row = [50 * float(x @ t) for t in dual().classes(NAMES)]
        for c, m in enumerate(means):
            row[c] += 0.3 * float(x @ inverse @ m - 0.5 * m @ inverse @ m + torch.tensor(1 / 3).log())
        expected.append(row)
    torch.testing.assert_close(found.of_features(asked), torch.tensor(expected), atol=1e-3, rtol=1e-5)


def test_nothing_mixed_in_is_the_zero_shot_classifier() -> None:
    features, labels = blobs()
    found = part(mixture=0.0, scale=dual().scale).fit_features(dual(), NAMES, features[None], labels)
    torch.testing.assert_close(found.of_features(features), zero_shot(dual(), NAMES).of_features(features))


def test_the_mixture_is_chosen_on_validation_images() -> None:
    features, labels = blobs()
    known = blobs(30, 1)
    found = part().fit_features(dual(), NAMES, features[None], labels, known)
    assert found.settings["mixture"] > 0
    asked, right = blobs(60, 2)
    assert (found.of_features(asked).argmax(1) == right).float().mean() > 0.95
    told = zero_shot(dual(), NAMES).of_features(known[0]).argmax(1)
    assert part().fit_features(dual(), NAMES, features[None], labels, (known[0], told)).settings["mixture"] == 0


def test_one_image_of_each_class_is_enough() -> None:
    features, labels = blobs(3)
    found = part(mixture=1.0).fit_features(dual(), NAMES, features[None], labels)
    assert bool(found.of_features(features).isfinite().all())


def test_priors_move_the_biases() -> None:
    means, inverse = torch.randn(2, 4), torch.eye(4)
    _, equal = discriminant(means, inverse)
    _, biased = discriminant(means, inverse, torch.tensor([0.8, 0.2]))
    assert float((biased - equal)[0] - (biased - equal)[1]) == pytest.approx(float(torch.tensor(4.0).log()))


def test_classes_without_images_come_from_the_nearest_features() -> None:
    features, _ = blobs(30)
    found = part(near=4, copies=2, mixture=1.0).without_images(dual(), NAMES, features[None])
    text = dual().classes(NAMES)
    means, inverses = [], []
    for t in text:
        close = features[(features @ t).argsort(descending=True)[:4]]
        means.append((close.sum(0) + 2 * t) / 6)
        scatter = sum(torch.outer(x - t, x - t) for x in close) / 3
        inverses.append(24 * torch.linalg.inv(3 * scatter + scatter.trace() * torch.eye(24)))
    weights, bias = discriminant(torch.stack(means), torch.stack(inverses).mean(0))
    expected = 100 * features @ text.t() + features @ weights + bias
    torch.testing.assert_close(found.of_features(features), expected, atol=1e-3, rtol=1e-5)


def test_unlabelled_images_pull_the_classes_apart() -> None:
    """Names that are half right: expectation and maximisation find the groups that the features have."""
    features, labels = blobs(90)
    centres = class_means(features, labels, 3)
    other = FrozenDual(dual().model, dual().processor)
    noise = torch.randn(3, 24, generator=torch.Generator().manual_seed(4))
    other.classes = lambda names: F.normalize(centres + 0.25 * noise, dim=-1)
    before = (100 * features @ other.classes(NAMES).t()).argmax(1)
    found = part(mixture=1.0).fit_unlabelled(other, NAMES, features).of_features(features).argmax(1)
    assert (found == labels).float().mean() >= (before == labels).float().mean() + 0.05
    assert (found == labels).float().mean() > 0.95


def test_it_fits_images() -> None:
    generator = torch.Generator().manual_seed(0)
    shots = Shots(torch.randn(6, 3, 16, 16, generator=generator), torch.arange(6) % 3)
    known = Shots(torch.randn(3, 3, 16, 16, generator=generator), torch.arange(3))
    found = part(views=2).fit(dual(), NAMES, shots, known, seed=1)
    assert found.logits(known.pixels).shape == (3, 3)
    torch.testing.assert_close(found.of_features(dual().images(known.pixels)), found.logits(known.pixels))
    again = views(dual(), shots, 2, 1)
    assert again.shape == (2, 6, 24) and not torch.equal(again[0], again[1])
    assert torch.equal(again, views(dual(), shots, 2, 1))


def test_mistakes_are_refused() -> None:
    features, labels = blobs()
    with pytest.raises(UserError, match="chooses its mixture on validation images"):
        part().fit_features(dual(), NAMES, features[None], labels)
    with pytest.raises(UserError, match="class 2 has no image"):
        part(mixture=1.0).fit_features(dual(), NAMES, features[None], labels % 2)
    with pytest.raises(UserError, match="set mixture"):
        part().fit_unlabelled(dual(), NAMES, features)
    with pytest.raises(UserError, match="give the mixture"):
        part().without_images(dual(), NAMES, features[None])
    with pytest.raises(UserError, match="mixtur"):
        part(mixtur=1.0)
    with pytest.raises(UserError, match="not negative"):
        part(mixture=-1.0)
