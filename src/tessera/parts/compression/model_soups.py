"""Model soups average the weights of several fine-tuned models, and get a better model for the price of one.

Source: Wortsman et al., "Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing
inference time", 2022, arXiv:2203.05482. Models that were fine-tuned from one initialisation with other learning rates, data
orders or augmentations lie in one basin of the loss, so the mean of their weights is as good as the mean of their answers.
The uniform soup takes all; the greedy soup adds models in the order of their accuracy on held-out data, each only if the soup
does not get worse by it; the learned soup finds mixing weights, of models or of every tensor, by gradient on held-out data.

Deviations: the greedy soup adds a model that changes nothing, as the paper's recipe says (the released code wants it to get
better). The learned soup has no learned temperature and stays a mean: mixing weights are a softmax. Means are taken in double
precision. Whole-number buffers are the first ingredient's; statistics of BatchNorm are averaged and can be taken anew
(`recalibrated`).

Shapes: K ingredients; logits [B, C].
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from tessera.config import config
from tessera.errors import UserError
from tessera.lab.claim import Finding, claim
from tessera.models.compression import Score, same_architecture
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.lab.lab import Lab

M = TypeVar("M", bound=nn.Module)


def mixed(models: Sequence[nn.Module], weights: Sequence[float]) -> dict[str, Tensor]:
    """The state that is the weighted sum of the models' states, in their dtypes; whole numbers are the first one's."""
    states = [model.state_dict() for model in models]
    found = {}
    for name, first in states[0].items():
        if first.is_floating_point():
            total = sum(state[name].double() * weight for state, weight in zip(states, weights, strict=True))
            assert isinstance(total, Tensor)
            found[name] = total.to(first.dtype)
        else:
            found[name] = first.clone()
    return found


def averaged(models: Sequence[M], weights: Sequence[float] | None = None) -> M:
    """A copy of the first model with the mean weights of all; `weights` sum to 1. Raises `UserError` if they do not fit."""
    same_architecture(models)
    made = copy.deepcopy(models[0])
    made.load_state_dict(mixed(models, [1 / len(models)] * len(models) if weights is None else weights))
    return made


def number(score: float | Tensor) -> float:
    """A score without its gradient."""
    return float(score.detach()) if isinstance(score, Tensor) else float(score)


def path(first: M, second: M, score: Score, points: int = 5) -> list[float]:
    """Scores of `points` models on the straight line from the first to the second, both included."""
    places = [i / (points - 1) for i in range(points)]
    return [number(score(averaged([first, second], [1 - t, t]))) for t in places]


def barrier(scores: Sequence[float]) -> float:
    """How far a path of scores falls below the straight line between its ends; at most 0 within one basin."""
    last = len(scores) - 1
    line = [scores[0] + (scores[-1] - scores[0]) * i / last for i in range(len(scores))]
    return max(wanted - found for wanted, found in zip(line, scores, strict=True))


@torch.no_grad()
def recalibrated(model: M, batches: Iterable[Mapping[str, Any]]) -> M:
    """The model with the statistics of its BatchNorm layers taken anew over batches of its keyword arguments, in place."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    kept = [(layer.momentum, layer.training) for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain mean over batches
        layer.train()
    try:
        for batch in batches if layers else ():
            model(**batch)
    finally:
        for layer, (momentum, training) in zip(layers, kept, strict=True):
            layer.momentum = momentum
            layer.train(training)
    return model


class _Scored(nn.Module):
    """A score as a module's forward, so that it can be taken with other weights than the model's own."""

    def __init__(self, model: nn.Module, score: Score) -> None:
        super().__init__()
        self.model, self.score = model, score

    def forward(self) -> Any:
        return self.score(self.model)


@part("model_soups", socket="compression", catalog=317)
class ModelSoups:
    """A `Merger`."""

    @config
    class Config:
        """kind: who is in the soup; the learned one needs a score with a gradient.
        steps, lr: of the learned soup, Adam on the mixing weights' logits.
        by_tensor: the learned soup mixes every tensor by weights of its own."""

        kind: Literal["uniform", "greedy", "learned"] = "greedy"
        steps: int = 50
        lr: float = 0.05
        by_tensor: bool = False

        def validate_steps(self) -> None:
            if self.steps < 1 or self.lr <= 0:
                raise ValueError(f"steps must be at least 1 and lr above 0, not {self.steps} and {self.lr}.")

    def __init__(self, config: Config) -> None:
        self.config = config

    def merge(self, models: Sequence[M], score: Score | None = None) -> M:
        """The soup; `score` says how good a model is on held-out data, more is better. Raises `UserError` without one where
        it is needed, and for models of different architectures."""
        same_architecture(models)
        if self.config.kind == "uniform":
            return averaged(models)
        if score is None:
            raise UserError(f"a {self.config.kind} soup needs a score on held-out data; kind='uniform' does without.")
        if self.config.kind == "learned":
            return self._learned(models, score)
        return averaged([models[i] for i in self.ingredients(models, score)])

    def ingredients(self, models: Sequence[nn.Module], score: Score) -> list[int]:
        """Indices of the models in the greedy soup, in the order in which they were added."""
        own = [number(score(model)) for model in models]
        first, *others = sorted(range(len(models)), key=lambda i: (-own[i], i))
        chosen, best = [first], own[first]
        for index in others:
            reached = number(score(averaged([models[i] for i in [*chosen, index]])))
            if reached >= best:
                chosen.append(index)
                best = reached
        return chosen

    def _learned(self, models: Sequence[M], score: Score) -> M:
        made = averaged(models)
        states = [model.state_dict() for model in models]
        floating = [name for name, value in states[0].items() if value.is_floating_point()]
        stacked = {name: torch.stack([state[name].detach() for state in states]) for name in floating}
        own = {name for name, _ in made.named_parameters(remove_duplicate=False)}  # buffers take no gradient
        rows = len(floating) if self.config.by_tensor else 1
        logits = torch.zeros(rows, len(models), device=stacked[floating[0]].device, requires_grad=True)
        optimiser, scored = torch.optim.Adam([logits], self.config.lr), _Scored(made, score)

        def state() -> dict[str, Tensor]:
            found, weights = {}, logits.softmax(1).expand(len(floating), -1)
            for name, weight in zip(floating, weights, strict=True):
                used = weight if name in own else weight.detach()
                found[name] = torch.tensordot(used.to(stacked[name].dtype), stacked[name], 1)
            return found

        for _ in range(self.config.steps):
            reached = torch.func.functional_call(scored, {f"model.{name}": value for name, value in state().items()}, ())
            if not (isinstance(reached, Tensor) and reached.requires_grad):
                raise UserError("a learned soup needs a score that has a gradient, such as minus a loss on held-out data.")
            optimiser.zero_grad()
            (-reached).backward()
            optimiser.step()
        with torch.no_grad():
            made.load_state_dict({name: value.clone() for name, value in state().items()}, strict=False)
        return made


# Claims


@claim("a soup of identical ingredients is the ingredient", kind="exact", paper="section 2, recipe 1")
def identical(lab: Lab) -> Finding:
    """Uniform, greedy and learned soups of four copies; and the greedy choice against one written out for known scores."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3)).eval()
    x, wanted = torch.randn(20, 6), torch.randint(3, (20,))

    def score(made: Any) -> Tensor:
        return -nn.functional.cross_entropy(made(x), wanted)

    differs = 0.0
    for kind in ("uniform", "greedy", "learned"):
        soup = ModelSoups(ModelSoups.Config(kind=kind, steps=3)).merge([model] * 4, score)
        pairs = zip(soup.state_dict().values(), model.state_dict().values(), strict=True)
        differs = max(differs, *(float((a - b).abs().max()) for a, b in pairs))
    points = [nn.Linear(1, 1) for _ in range(4)]
    for point, place in zip(points, (0.0, 1.9, 1.2, 0.7), strict=True):
        nn.init.constant_(point.weight, place)
    # Wanted is 1. 1.2 comes first; 0.7 makes the mean 0.95, better; 1.9 would make it 1.27 and 0 then 0.63, both worse.
    chosen = ModelSoups(ModelSoups.Config()).ingredients(points, lambda m: -abs(float(m.weight.detach()) - 1.0))
    return Finding(
        checks={"weights within 1e-6": differs <= 1e-6, "the greedy choice is the one written out": chosen == [2, 3]},
        measured={"weights differ by": differs},
    )


@claim("a linear model's soup answers as its ensemble", kind="exact", paper="section 4")
def linear_ensemble(lab: Lab) -> Finding:
    """The mean of weights against the mean of logits where the two are the same thing."""
    torch.manual_seed(0)
    models, x = [nn.Linear(16, 5).double() for _ in range(5)], torch.randn(30, 16).double()
    with torch.no_grad():
        together = torch.stack([model(x) for model in models]).mean(0)
        differs = float((averaged(models)(x) - together).abs().max())
    return Finding(checks={"logits within 1e-12": differs < 1e-12}, measured={"logits differ by": differs})


Data: TypeAlias = "tuple[Tensor, Tensor]"
"""What a tower's lower blocks make of images of single things, [I, N, D] float16, and the things' categories [I]."""
TUNED = 2
"""Blocks at a tower's end that are tuned; what lies below is run once for all runs."""
RUNS = tuple((lr, smoothing, mixup) for lr in (2e-4, 6e-4) for smoothing, mixup in ((0.0, False), (0.1, False), (0.0, True)))
"""What six runs from one start differ in, beside the order of the data: learning rate, label smoothing, mixing of two images."""


class Cook(nn.Module):
    """The last blocks of a tower, the mean over its places and a linear head: [B, N, D] -> logits [B, C]."""

    def __init__(self, encoder: nn.Module, width: int, classes: int, blocks: int = TUNED) -> None:
        super().__init__()
        tower: Any = copy.deepcopy(encoder)
        self.blocks, self.norm, self.head = nn.Sequential(*tower.blocks[-blocks:]), tower.norm, nn.Linear(width, classes)

    def features(self, below: Tensor) -> Tensor:
        """[B, N, D] of any float dtype -> [B, D]."""
        found: Tensor = self.norm(self.blocks(below.float())).mean(1)
        return found

    def forward(self, below: Tensor) -> Tensor:
        return self.head(self.features(below))


def single_things(lab: Lab, count: int, **options: Any) -> Data:
    """Images [I, 3, 112, 112] of one novel thing each, and the categories of the things."""
    import numpy as np

    from tessera.training.dense import to_pixels
    from tessera.world.concepts import by_category, concepts

    names = sorted(by_category("all"))
    world = lab.world(things=(1, 1), kinds={"scene": 1.0}, pool="novel", **options)
    samples = [world[i] for i in range(count)]
    labels = [names.index(concepts()[s.frames[0].things[0].concept].category) for s in samples]
    return to_pixels([np.asarray(s.images()[0]) for s in samples]), torch.tensor(labels)


@torch.no_grad()
def below(encoder: Any, data: Data) -> Data:
    """The data as they come out of the blocks that are not tuned."""
    return torch.cat([encoder.levels(x)[-1 - TUNED].half() for x in data[0].split(128)]), data[1]


_READS = ("qkv.weight", "up.weight", "head.weight")
_WRITES = ("stem.6.", "local.", "norm1.", "norm2.", "out.", "down.", "norm.")


def reordered(model: M, order: Tensor) -> M:
    """A tower of kind `conv_vit`, or a `Cook` on its blocks, that computes the same with its channels in another order."""
    made = copy.deepcopy(model)
    state = made.state_dict()
    for name, value in state.items():
        if name == "position" or name.endswith(_READS):
            state[name] = value[..., order]
        elif any(f".{part}" in f".{name}" for part in _WRITES):
            state[name] = value[order]
    made.load_state_dict(state)
    return made


def probed(encoder: nn.Module, data: Data, classes: int, seed: int) -> Cook:
    """A tower with a head that was trained on its frozen features: where fine-tuning starts in the paper."""
    torch.manual_seed(seed)
    cook = Cook(encoder, data[0].shape[-1], classes)
    with torch.no_grad():
        features = torch.cat([cook.features(x) for x in data[0].split(128)])
    optimiser = torch.optim.AdamW(cook.head.parameters(), 1e-2)
    for _ in range(200):
        optimiser.zero_grad()
        nn.functional.cross_entropy(cook.head(features), data[1]).backward()
        optimiser.step()
    return cook


def trained(
    model: Cook, data: Data, *, lr: float, seed: int, smoothing: float, mixup: bool, steps: int = 40, batch: int = 32
) -> Cook:
    """A copy of the model after AdamW with a falling rate."""
    model = copy.deepcopy(model).train()
    random = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.05)
    for step in range(steps):
        chosen = torch.randint(len(data[1]), (batch,), generator=random)
        x, share = data[0][chosen].float(), float(torch.rand(1, generator=random)) if mixup else 1.0
        found = model(share * x + (1 - share) * x.flip(0) if mixup else x)
        loss = sum(
            weight * nn.functional.cross_entropy(found, labels, label_smoothing=smoothing)
            for weight, labels in ((share, data[1][chosen]), (1 - share, data[1][chosen.flip(0)]))
            if weight
        )
        assert isinstance(loss, Tensor)
        for group in optimiser.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 10, 2 * (steps - step) / steps)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


@torch.no_grad()
def answers(model: nn.Module, data: Data) -> Tensor:
    """Probabilities [I, C]."""
    return torch.cat([model(x).softmax(-1) for x in data[0].split(128)])


def right(probabilities: Tensor, data: Data) -> float:
    """Share of right categories."""
    return float((probabilities.argmax(-1) == data[1]).double().mean())


@claim("a soup is better than the best of its ingredients, and more so where the data shift", kind="effect", paper="tables 2, 3")
def better_than_the_best(lab: Lab) -> Finding:
    """Categories of novel things in one style, per seed six runs that tune the last blocks of the reference dual encoder's tower
    and a probe on it; test in that style and in another. The control averages a run with one that computes the same but lies
    elsewhere: all its channels, those of the blocks below included, stand in another order."""
    from tessera.lab.lab import mean, spread
    from tessera.world.concepts import by_category

    classes = len(by_category("all"))
    images = {
        "tune": single_things(lab, 1000, split="train", styles=("noto",)),
        "held": single_things(lab, 300, split="val", styles=("noto",)),
        "": single_things(lab, 500, styles=("noto",)),
        ", shifted": single_things(lab, 500, styles=("twemoji",)),
    }
    tower = lab.reference("nano-clip", copy=True)[0].encoder.float()
    order = torch.randperm(tower.width, generator=torch.Generator().manual_seed(0))
    own = {name: below(tower, data) for name, data in images.items()}
    halfway = averaged([tower, reordered(tower, order)])
    between = {on: below(halfway, images[on]) for on in ("", ", shifted")}
    rows: dict[str, list[float]] = {}

    def score(model: nn.Module) -> float:
        return right(answers(model, own["held"]), own["held"])

    for seed in lab.seeds:
        start = probed(tower, own["tune"], classes, seed)
        runs = [trained(start, own["tune"], lr=lr, seed=6 * seed + i, smoothing=s, mixup=m) for i, (lr, s, m) in enumerate(RUNS)]
        twin = reordered(runs[0], order)
        chosen = [runs[i] for i in ModelSoups(ModelSoups.Config(kind="greedy")).ingredients(runs, score)]
        for on in ("", ", shifted"):
            of_runs = [answers(run, own[on]) for run in runs]
            found = {
                "greedy soup": answers(averaged(chosen), own[on]),
                "uniform soup": answers(averaged(runs), own[on]),
                "ensemble": torch.stack(of_runs).mean(0),
                "best run": of_runs[runs.index(chosen[0])],
                "a run": of_runs[0],
                "its twin": answers(twin, (own[on][0][..., order], own[on][1])),
                "a run and its twin": answers(averaged([runs[0], twin]), between[on]),
            }
            for name, probabilities in found.items():
                rows.setdefault(name + on, []).append(right(probabilities, own[on]))
        rows.setdefault("barrier within", []).append(barrier(path(runs[1], runs[4], score, 3)))
    means = {name: mean(values) for name, values in rows.items()}
    labels = images[""][1]
    guess = float(labels.bincount().max()) / len(labels)
    gain, shift = (means[f"greedy soup{on}"] - means[f"best run{on}"] for on in ("", ", shifted"))
    learned = means["best run"] - guess >= 0.20  # the control is to lose as much: below, there is nothing to lose
    return Finding(
        checks={
            "at least the best run": gain >= 0,
            "half a point above it where the style shifts": shift >= 0.005,
            "a run and its twin lose 20 points": means["a run"] - means["a run and its twin"] >= 0.20,
        },
        measured={name: value for name, value in means.items() if name not in _COMPARED},
        baseline={**{name: means[name] for name in _COMPARED[:2]}, "always the most frequent category": guess},
        control={name: means[name] for name in _COMPARED[2:]},
        spread={name: spread(rows[name]) for name in ("greedy soup", "greedy soup, shifted")},
        seeds=lab.seeds,
        shape=f"6 runs of 40 steps a seed, the last {TUNED} of 5 blocks, 500 images of 112 pixels in each test",
        note=""
        if learned
        else "The runs are hardly better than a guess, so this says nothing about soups of models that learned.",
    )


_COMPARED = (
    "best run", "best run, shifted",
    "a run", "its twin", "a run and its twin", "a run, shifted", "its twin, shifted", "a run and its twin, shifted",
)  # fmt: skip


@claim("a soup costs what one model costs", kind="cost", paper="abstract")
def costs_one_model(lab: Lab) -> Finding:
    """FLOPs and stored bytes of a soup of six, against one ingredient and against the ensemble of the six."""
    from tessera.models.compression import stored_bytes
    from tessera.models.parts import create

    torch.manual_seed(0)
    encoder = create("encoders", {"kind": "conv_vit", "image_size": 64, "width": 96, "depth": 3, "heads": 3}, "encoder")
    models, x = [Cook(encoder, 96, 8, blocks=3).eval() for _ in range(6)], torch.randn(4, 64, 96)
    soup = averaged(models)
    one, own = lab.flops(lambda: models[0](x)), lab.flops(lambda: soup(x))
    together = lab.flops(lambda: [model(x) for model in models])
    return Finding(
        checks={"FLOPs of one": own == one, "bytes of one": stored_bytes(soup) == stored_bytes(models[0])},
        measured={"FLOPs, times": own / one, "bytes, times": stored_bytes(soup) / stored_bytes(models[0])},
        baseline={"FLOPs of the ensemble, times": together / one},
    )
