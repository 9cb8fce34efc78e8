"""GDA-CLIP mixes a Gaussian classifier of image features, fitted in closed form, with the zero-shot classifier.

Source: Wang et al., "A Hard-to-Beat Baseline for Training-Free CLIP-based Adaptation", 2024, arXiv:2402.04087. The features of a
class are taken for a Gaussian with a mean of its own and a covariance that all classes share; then the logarithm of the posterior
is linear in the feature. Mean and covariance come from the shots, the precision from a shrinkage estimator that few images do not
break. How much of it is added to the zero-shot logits is chosen on validation images. A class without images gets its mean from
the features nearest to its name and from the name itself (`without_images`); images without labels are fitted by expectation and
maximisation from the zero-shot posteriors (`fit_unlabelled`).

Deviations: of equally good mixtures the smallest is taken, as in the published code, but mixing nothing in counts as one too.
Without labels the covariance is shrunk in every round as in the other settings, but keeps its size (I - 1 in the place of E), as
the shares of the next round depend on it; the rounds end after `rounds`.

Shapes: I images, C classes, E channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.config import config
from tessera.errors import UserError
from tessera.models.few_shot import Classifier, FewShot, FrozenDual, Shots, views
from tessera.registry import part

TINY = {"views": 2}
MIXTURES = (0.0, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)


def precision(centred: Tensor) -> Tensor:
    """Features less their class's mean [I, E] -> the inverse covariance [E, E] by shrinkage: E ((I - 1) S + tr(S) 1)^+, where S
    is the covariance around the mean of all of them."""
    count, width = centred.shape
    covariance = centred.t().cov() if count > 1 else centred.new_zeros(width, width)
    return width * torch.linalg.pinv(
        (count - 1) * covariance + covariance.trace() * torch.eye(width, dtype=centred.dtype), hermitian=True
    )


def discriminant(means: Tensor, inverse: Tensor, prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Means [C, E], precision [E, E], prior [C] (equal by default) -> weights [E, C] and biases [C] of the log posteriors, which
    lack what all classes share."""
    prior = means.new_full((len(means),), 1 / len(means)) if prior is None else prior
    weights = inverse @ means.t()
    return weights, prior.log() - 0.5 * (means * weights.t()).sum(1)


def class_means(features: Tensor, labels: Tensor, classes: int) -> Tensor:
    """[I, E], [I] -> [C, E]. Raises `UserError` for a class without an image."""
    member = F.one_hot(labels, classes).to(features.dtype)
    counts = member.sum(0)
    if not bool((counts > 0).all()):
        empty = int((counts == 0).nonzero()[0])
        raise UserError(f"class {empty} has no image: give one of each, or take `without_images` for classes that have none.")
    return member.t() @ features / counts[:, None]


@part("gda_clip", socket="few_shot", catalog=308)
class GDACLIP(FewShot):
    """Gaussian discriminant analysis and the zero-shot classifier, mixed; nothing is trained."""

    @config
    class Config:
        """mixture: how much of the Gaussian logits is added (None: chosen on validation images); views: augmented copies of every
        image, 0 for the image as it is; scale: of the zero-shot cosines.
        near, copies: of a class without images, features that its mean is taken from, and how often its name counts beside them.
        rounds: of expectation and maximisation without labels."""

        mixture: float | None = None
        views: int = 10
        scale: float = 100.0
        near: int = 64
        copies: int = 16
        rounds: int = 10

        def validate_sizes(self) -> None:
            if self.views < 0 or self.near < 2 or self.copies < 0 or self.rounds < 1:
                raise ValueError("views and copies must be at least 0, rounds at least 1, near at least 2.")
            if self.scale <= 0 or (self.mixture is not None and self.mixture < 0):
                raise ValueError("scale must be above 0, mixture not negative.")

    config: GDACLIP.Config

    def fit(
        self, dual: FrozenDual, names: Sequence[str], shots: Shots, validation: Shots | None = None, *, seed: int = 0
    ) -> Classifier:
        """Raises `UserError` for a class without an image, or where the mixture is to be chosen and `validation` is missing."""
        shots.check(len(names))
        if validation is not None:
            validation.check(len(names))
        features = views(dual, shots, self.config.views, seed)
        known = None if validation is None else (dual.images(validation.pixels), validation.labels)
        return self.fit_features(dual, names, features, shots.labels, known)

    def fit_features(
        self,
        dual: FrozenDual,
        names: Sequence[str],
        features: Tensor,
        labels: Tensor,
        validation: tuple[Tensor, Tensor] | None = None,
    ) -> Classifier:
        """`fit` on features [V, I, E] of V copies of the images, and of validation images [I', E] with their labels."""
        text = dual.classes(names)
        flat, owner = features.flatten(0, 1), labels.repeat(len(features))
        means = class_means(flat, owner, len(names))
        weights, bias = discriminant(means, precision(flat - means[owner]))
        mixture = self._mixture(text, weights, bias, validation)
        return self._classifier(dual, names, text, weights, bias, mixture)

    def without_images(
        self, dual: FrozenDual, names: Sequence[str], features: Tensor, mixture: float | None = None
    ) -> Classifier:
        """A classifier of other names than those whose images are there: `features` [V, I, E] belong to any other classes.

        mixture: as it was chosen for those (None: the configured one).
        """
        text, flat = dual.classes(names), features.flatten(0, 1)
        near = min(self.config.near, len(flat))
        means, inverse = [], torch.zeros(flat.shape[1], flat.shape[1])
        for name in text:
            close = flat[(flat @ name).topk(near).indices]
            means.append(torch.cat([close, name.expand(self.config.copies, -1)]).mean(0))
            around = close - name
            scatter = around.t() @ around
            trace = scatter.trace() / (near - 1)
            inverse += flat.shape[1] * torch.linalg.pinv(scatter + trace * torch.eye(flat.shape[1]), hermitian=True) / len(text)
        weights, bias = discriminant(torch.stack(means), inverse)
        share = self.config.mixture if mixture is None else mixture
        if share is None:
            raise UserError(
                "how much is mixed in cannot be chosen without images: give the mixture of the classes that have some."
            )
        return self._classifier(dual, names, text, weights, bias, share)

    def fit_unlabelled(self, dual: FrozenDual, names: Sequence[str], features: Tensor) -> Classifier:
        """A classifier from unlabelled features [I, E]: a mixture of Gaussians with one covariance, begun with the zero-shot
        posteriors. Raises `UserError` without a configured mixture."""
        if self.config.mixture is None:
            raise UserError("without labels nothing tells how much to mix in: set mixture.")
        text = dual.classes(names)
        posterior = (self.config.scale * features @ text.t()).softmax(1)
        for _ in range(self.config.rounds):
            weights, bias = discriminant(*_soft(features, posterior))
            posterior = (features @ weights + bias).softmax(1)
        return self._classifier(dual, names, text, weights, bias, self.config.mixture)

    def _mixture(self, text: Tensor, weights: Tensor, bias: Tensor, validation: tuple[Tensor, Tensor] | None) -> float:
        if self.config.mixture is not None:
            return self.config.mixture
        if validation is None:
            raise UserError("gda_clip chooses its mixture on validation images: give some, or set mixture.")
        features, labels = validation
        found = [self._logits(features, text, weights, bias, m).argmax(1) == labels for m in MIXTURES]
        return max(zip(MIXTURES, found, strict=True), key=lambda pair: (int(pair[1].sum()), -pair[0]))[0]

    def _classifier(
        self, dual: FrozenDual, names: Sequence[str], text: Tensor, weights: Tensor, bias: Tensor, mixture: float
    ) -> Classifier:
        made = Classifier(dual, names, lambda features: self._logits(features, text, weights, bias, mixture))
        made.settings["mixture"] = mixture
        return made

    def _logits(self, features: Tensor, text: Tensor, weights: Tensor, bias: Tensor, mixture: float) -> Tensor:
        return self.config.scale * features @ text.t() + mixture * (features @ weights + bias)


def _soft(features: Tensor, posterior: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Means [C, E], shrunk precision [E, E] and prior [C] of features [I, E] that belong to classes in shares [I, C]."""
    mass = posterior.sum(0).clamp_min(1e-6)
    means = posterior.t() @ features / mass[:, None]
    square = features.t() @ features - means.t() @ (means * mass[:, None])
    count, width = features.shape
    covariance = square / (count - 1)
    inverse = (count - 1) * torch.linalg.pinv(square + covariance.trace() * torch.eye(width), hermitian=True)
    return means, inverse, mass / count
