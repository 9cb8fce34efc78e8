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
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.config import config
from tessera.errors import UserError
from tessera.lab.claim import Finding, claim
from tessera.models.few_shot import Classifier, FewShot, FrozenDual, Shots, views
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.lab.lab import Lab

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


@claim("weights and biases are those of the Gaussian posteriors", kind="exact", paper="equations 3 to 6")
def equals_posteriors(lab: Lab) -> Finding:
    """Differences between the classes' logits against differences of log densities, written out image by image in float64; and
    the precision against the inverse of the shrunk covariance."""
    lots = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(60, 12, generator=lots, dtype=torch.float64), dim=-1)
    labels = torch.arange(60) % 5
    means = class_means(features, labels, 5)
    inverse = precision(features - means[labels])
    prior = torch.tensor([0.1, 0.2, 0.3, 0.15, 0.25], dtype=torch.float64)
    weights, bias = discriminant(means, inverse, prior)
    centred = torch.stack([x - means[k] for x, k in zip(features, labels.tolist(), strict=True)])
    around = centred - centred.mean(0)
    covariance = torch.stack([torch.outer(x, x) for x in around]).sum(0) / 59
    shrunk = (59 * covariance + covariance.trace() * torch.eye(12, dtype=torch.float64)) / 12
    gap = 0.0
    for x in F.normalize(torch.randn(20, 12, generator=lots, dtype=torch.float64), dim=-1):
        density = torch.stack(
            [p.log() - 0.5 * (x - m) @ torch.linalg.solve(shrunk, x - m) for p, m in zip(prior, means, strict=True)]
        )
        mine = x @ weights + bias
        gap = max(gap, float(((mine - mine[0]) - (density - density[0])).abs().max()))
    inverse_gap = float((inverse @ shrunk - torch.eye(12, dtype=torch.float64)).abs().max())
    means_gap = float((means - torch.stack([features[labels == c].mean(0) for c in range(5)])).abs().max())
    return Finding(
        checks={
            "posteriors equal within 1e-9": gap < 1e-9,
            "the precision inverts the shrunk covariance within 1e-9": inverse_gap < 1e-9,
            "means equal within 1e-12": means_gap < 1e-12,
        },
        measured={"largest difference of the posteriors": gap, "of the inverse": inverse_gap, "of the means": means_gap},
        shape="60 features of 12 channels, 5 classes, float64",
    )


@claim(
    "with four images of each class it beats the prompts, and is not behind a cache of the same images",
    kind="effect",
    paper="figure 2",
)
def beats_prompts(lab: Lab) -> Finding:
    """Twenty classes: crops of known things, and scenes of things whose names the text tower never learned; shots in one artwork
    style, test images in the other. Against hand-written prompts and Tip-Adapter (Zhang et al., 2021, arXiv:2111.03930), whose
    two settings are chosen on the same validation images. Control: labels dealt out anew."""
    from tessera.lab.instruments import few_shot as tasks
    from tessera.lab.lab import mean, spread
    from tessera.models.few_shot import zero_shot

    model, processor = lab.reference("nano-clip")
    dual, part = FrozenDual(model, processor), GDACLIP(GDACLIP.Config())
    cells: dict[str, list[float]] = {}
    drawn: tuple[tuple[str, tasks.View], ...] = (("base", "crops"), ("novel", "scenes"))
    for of, view in drawn:
        for seed in lab.seeds:
            task = tasks.task(processor, of=of, view=view, shots=4, seed=seed)
            features = views(dual, task.shots, part.config.views, seed)
            known = dual.images(task.validation.pixels), task.validation.labels
            asked, right = dual.images(task.test.pixels), task.test.labels
            labels = task.shots.labels
            dealt = tasks.shuffled(labels, seed)
            found = {"prompts": zero_shot(dual, task.names)}
            for k in (1, 2, 4):
                few = k * len(task.names)
                found[f"{k} shots"] = part.fit_features(dual, task.names, features[:, :few], labels[:few], known)
            found["cache of 4 shots"] = _tip_adapter(dual, task.names, features, labels, known)
            found["4 shots, labels dealt out anew"] = part.fit_features(dual, task.names, features, dealt, known)
            for name, classifier in found.items():
                cells.setdefault(f"{of} {view}: {name}", []).append(tasks.accuracy(classifier, asked, right))
    value = {cell: mean(values) for cell, values in cells.items()}
    rows = [cell.partition(": ")[0] for cell in value if cell.endswith(": prompts")]
    gain = mean([value[f"{row}: 4 shots"] - value[f"{row}: prompts"] for row in rows])
    lost = mean([value[f"{row}: 4 shots, labels dealt out anew"] - value[f"{row}: prompts"] for row in rows])
    return Finding(
        checks={
            "four shots gain at least 5 points": gain >= 0.05,
            "never more than half a point behind the cache": all(
                value[f"{row}: 4 shots"] >= value[f"{row}: cache of 4 shots"] - 0.005 for row in rows
            ),
            "one shot is not worse than the prompts by more than a point": all(
                value[f"{row}: 1 shots"] >= value[f"{row}: prompts"] - 0.01 for row in rows
            ),
            "labels dealt out anew gain less than 2 points": lost < 0.02,
        },
        measured={cell: v for cell, v in value.items() if cell.endswith(" shots") and "cache" not in cell}
        | {"gain of four shots": gain},
        baseline={cell: v for cell, v in value.items() if cell.endswith("prompts") or "cache" in cell},
        control={cell: v for cell, v in value.items() if "anew" in cell} | {"gain with labels dealt out anew": lost},
        seeds=lab.seeds,
        spread={cell: spread(values) for cell, values in cells.items()},
        note="Names that the text tower never learned leave the prompts near chance, so most of the gain can be had there.",
    )


@claim("classes without images lose nothing against their prompts", kind="effect", paper="table 3, base to new")
def extends_to_new(lab: Lab) -> Finding:
    """Forty known things, twenty of them with four images each; the other twenty are classified from those images and their own
    names. Control: the same with names dealt out anew."""
    from tessera.lab.instruments import few_shot as tasks
    from tessera.lab.lab import mean, spread
    from tessera.models.few_shot import zero_shot

    model, processor = lab.reference("nano-clip")
    dual, part = FrozenDual(model, processor), GDACLIP(GDACLIP.Config())
    cells: dict[str, list[float]] = {}
    for seed in lab.seeds:
        task = tasks.task(processor, view="crops", classes=40, shots=4, seed=seed)
        old, new = task.names[:20], task.names[20:]
        shots, known = _below(task.shots, 20), _below(task.validation, 20)
        features = views(dual, shots, part.config.views, seed)
        fitted = part.fit_features(dual, old, features, shots.labels, (dual.images(known.pixels), known.labels))
        away = task.test.labels >= 20
        asked, right = dual.images(task.test.pixels[away]), task.test.labels[away] - 20
        mixture = fitted.settings["mixture"]
        for name, classifier in (
            ("prompts", zero_shot(dual, new)),
            ("from others' images", part.without_images(dual, new, features, mixture)),
            ("names dealt out anew", part.without_images(dual, [*new[7:], *new[:7]], features, mixture)),
        ):
            cells.setdefault(name, []).append(tasks.accuracy(classifier, asked, right))
        cells.setdefault("mixture", []).append(mixture)
    value = {cell: mean(values) for cell, values in cells.items()}
    return Finding(
        checks={
            "within a point of the prompts, or above": value["from others' images"] >= value["prompts"] - 0.01,
            "names dealt out anew are near chance": value["names dealt out anew"] < 0.10,
        },
        measured={name: value[name] for name in ("from others' images", "mixture")},
        baseline={"prompts": value["prompts"], "chance": 1 / 20},
        control={"names dealt out anew": value["names dealt out anew"]},
        seeds=lab.seeds,
        spread={cell: spread(values) for cell, values in cells.items()},
    )


@claim("fitted in less than a second, without a gradient", kind="cost", paper="table 6")
def fits_at_once(lab: Lab) -> Finding:
    """From features of 16 images of each of 20 classes in ten copies: the time of the fit, the choice of the mixture included."""
    import time

    model, processor = lab.reference("nano-clip")
    dual, part = FrozenDual(model, processor), GDACLIP(GDACLIP.Config())
    lots = torch.Generator().manual_seed(0)
    names, width = [str(n) for n in range(20)], model.config.projection_dim
    features = F.normalize(torch.randn(10, 320, width, generator=lots), dim=-1)
    known = F.normalize(torch.randn(80, width, generator=lots), dim=-1), torch.arange(80) % 20
    before = [p.detach().clone() for p in model.parameters()]
    taken = []
    for _ in range(5):
        begin = time.perf_counter()
        part.fit_features(dual, names, features, torch.arange(320) % 20, known)
        taken.append(time.perf_counter() - begin)
    same = all(torch.equal(a, b) and b.grad is None for a, b in zip(before, model.parameters(), strict=True))
    seconds = sorted(taken)[2]
    return Finding(
        checks={"less than a second": seconds < 1.0, "no weight has changed or has a gradient": same},
        measured={"seconds, median of 5": seconds},
        shape=f"3200 features of {width} channels, 20 classes, {lab.shape()}",
    )


def _below(shots: Shots, classes: int) -> Shots:
    few = shots.labels < classes
    return Shots(shots.pixels[few], shots.labels[few])


def _tip_adapter(
    dual: FrozenDual, names: Sequence[str], features: Tensor, labels: Tensor, known: tuple[Tensor, Tensor]
) -> Classifier:
    """Features [V, I, E]: their means over the copies as keys, labels as values, sharpness and share by grid search."""
    text, keys = dual.classes(names), F.normalize(features.mean(0), dim=-1)
    values = F.one_hot(labels, len(names)).float()

    def logits(found: Tensor, beta: float, alpha: float) -> Tensor:
        return 100 * found @ text.t() + alpha * (beta * (found @ keys.t() - 1)).exp() @ values

    grid = [(0.1 + beta * 6.9 / 20, 0.1 + alpha * 2.9 / 20) for beta in range(20) for alpha in range(20)]
    score = [int((logits(known[0], *cell).argmax(1) == known[1]).sum()) for cell in grid]
    best = grid[score.index(max(score))]
    return Classifier(dual, names, lambda found: logits(found, *best))
