"""Model soups: the mean of several fine-tuned models' weights is more accurate than the best of them, at the cost of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Checked, Cost, Exact, Experiment, Paper, Use, Vary, beats, worse
from tessera.lab.protocols.compression import Souping
from tessera.lab.protocols.operations import Operations

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def identical(lab: Lab) -> Checked:
    """Uniform, greedy and learned soups of four copies; and the greedy choice against one written out for known scores."""
    import torch
    from torch import Tensor, nn

    from tessera.parts.compression.model_soups import ModelSoups

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
    return Checked(
        checks={"weights within 1e-6": differs <= 1e-6, "the greedy choice is the one written out": chosen == [2, 3]},
        measured={"weights differ by": differs},
    )


def linear_ensemble(lab: Lab) -> Checked:
    """The mean of weights against the mean of logits where the two are the same thing."""
    import torch
    from torch import nn

    from tessera.parts.compression.model_soups import averaged

    torch.manual_seed(0)
    models, x = [nn.Linear(16, 5).double() for _ in range(5)], torch.randn(30, 16).double()
    with torch.no_grad():
        together = torch.stack([model(x) for model in models]).mean(0)
        differs = float((averaged(models)(x) - together).abs().max())
    return Checked(checks={"logits within 1e-12": differs < 1e-12}, measured={"logits differ by": differs})


CLAIMS = [
    Exact(
        id="identical",
        promise="A soup of identical ingredients is the ingredient, and the greedy choice is that worked out by hand for known "
        "scores.",
        paper="section 2, recipe 1",
        run=identical,
    ),
    Exact(
        id="linear_ensemble",
        promise="The soup of linear models gives the same answers as their ensemble.",
        paper="section 4",
        run=linear_ensemble,
    ),
    Experiment(
        id="beats_best",
        promise="On held-out data the accuracy of a greedy soup is higher than that of the best of its ingredients.",
        paper="tables 2 and 3",
        protocol=Souping(),
        treatment=Use("model_soups", kind="greedy"),
        baseline=Vary("best run"),
        control=Use("model_soups", kind="uniform", starts="own"),
        others={"uniform": Use("model_soups", kind="uniform"), "ensemble": Vary("ensemble")},
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(beats("baseline", metric="shifted"), beats("baseline", of="uniform"), beats("ensemble")),
        note="The control averages runs that began from different random weights, which do not lie in one basin.",
    ),
    Cost(
        id="price_of_one",
        promise="A soup of six takes the operations and the bytes of one model.",
        paper="abstract: no additional inference or memory costs",
        protocol=Operations(),
        treatment=Vary("soup", uses=("model_soups",), models=6, merged=True),
        baseline=Vary("soup", uses=("model_soups",), models=1),
        at_least={"flop ratio": Paper(1.0, "abstract")},
        at_most={"byte ratio": Paper(1.0, "abstract")},
    ),
]
