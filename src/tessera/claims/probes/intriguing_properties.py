"""Intriguing properties: order of tokens matters less than order of patches, and the lower layers matter most."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Checked, Effect, Exact, Experiment, Vary, beats, worse
from tessera.lab.protocols.probe import Disturbed, NoisyLayers

if TYPE_CHECKING:
    from tessera.lab.lab import Lab

PART = ("intriguing_properties",)


def orders(lab: Lab) -> Checked:
    """Permutations of 49 tokens; nearest neighbours against a loop."""
    import torch
    from torch.nn import functional as F

    from tessera.parts.probes.intriguing_properties import mutual_knn, order

    generator = torch.Generator().manual_seed(0)
    made = {how: order(49, 7, how, generator) for how in ("tokens", "within", "between")}
    a, b = torch.randn(12, 5, generator=generator), torch.randn(12, 4, generator=generator)
    naive = []
    for i in range(12):
        sets = []
        for space in (a.double() - a.double().mean(0), b.double() - b.double().mean(0)):
            likeness = [(float(F.cosine_similarity(space[i], space[j], 0)), j) for j in range(12) if j != i]
            sets.append({j for _, j in sorted(likeness, reverse=True)[:3]})
        naive.append(len(sets[0] & sets[1]) / 3)
    return Checked(
        checks={
            "every order is a permutation": all(o.sort().values.tolist() == list(range(49)) for o in made.values()),
            "none is the order itself": all(o.tolist() != list(range(49)) for o in made.values()),
            "within groups no token leaves its group": bool((made["within"] // 7 == torch.arange(49) // 7).all()),
            "between groups each stays whole": bool((made["between"].view(7, 7).diff(dim=1) == 1).all()),
            "neighbours equal a loop": bool(torch.allclose(mutual_knn(a, b, 3), torch.tensor(naive, dtype=torch.float))),
        }
    )


def idle_layer(lab: Lab) -> Checked:
    """Layers of a tiny random model, into which one that adds nothing was put at each place in turn."""
    from tessera.evaluation.provenance import weights_hash
    from tessera.parts.probes.intriguing_properties import IntriguingProperties
    from tessera.world import WorldConfig

    world = WorldConfig(split="val", kinds={"scene": 1.0}, things=(1, 2), width=64, height=64)
    probe = IntriguingProperties(IntriguingProperties.Config(types=("existence",), n=4, world=world))
    found: dict[str, bool] = {}
    measured: dict[str, float] = {}
    for at in (1, 2):
        model, processor = _with_idle_layer(at)
        before = weights_hash(model)
        importance = probe.layers(model, processor, probe.items(model))
        hooks = sum(len(m._forward_hooks) for m in model.modules())
        found[f"only layer {at}, which adds nothing, has importance 0"] = [v == 0 for v in importance] == [
            n == at for n in range(3)
        ]
        found[f"the model is as before ({at})"] = weights_hash(model) == before and hooks == 0
        measured |= {f"importance of layer {n}, idle {at}": value for n, value in enumerate(importance)}
    return Checked(checks=found, measured=measured, shape="3 layers of width 32, float32, random weights")


def _with_idle_layer(at: int) -> tuple[Any, Any]:
    """The tiny model of golden runs with a decoder layer that adds nothing in front of layer `at`."""
    from copy import deepcopy

    from tessera.hosts.plug import attach
    from tessera.lab.protocols.tiny import tiny_model

    shared, processor = tiny_model()
    model = deepcopy(shared)
    inner: Any = attach(model).architecture.language_model
    idle = deepcopy(inner.layers[min(at, len(inner.layers) - 1)])
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        idle.get_submodule(name).weight.data.zero_()
    inner.layers.insert(at, idle)
    for number, layer in enumerate(inner.layers):
        layer.self_attn.layer_idx = number
    inner.config.num_hidden_layers = len(inner.layers)
    if kinds := getattr(inner.config, "layer_types", None):
        inner.config.layer_types = [*kinds[:at], kinds[at - 1], *kinds[at:]]
    return model, processor


CLAIMS = [
    Exact(
        id="orders",
        promise="Orders are permutations of what they are said to permute, and mutual nearest neighbours equal those of a loop.",
        paper="section 3.2",
        run=orders,
    ),
    Exact(
        id="idle_layer",
        promise="Noise in a layer that does nothing leaves the loss as it is, noise in any other layer does not, and the model "
        "is restored.",
        paper="section 3.6",
        run=idle_layer,
    ),
    Experiment(
        id="order_of_tokens",
        promise="Shuffled visual tokens lower accuracy less than shuffled patches of the image do.",
        paper="section 3.2, table 1",
        protocol=Disturbed(),
        treatment=Vary("tokens", uses=PART, look="tokens"),
        baseline=Vary("patches", uses=PART, look="patches"),
        control=Vary("another picture's tokens", uses=PART, look="mismatched"),
        others={
            "intact": Vary("intact", uses=PART),
            "within": Vary("within groups", uses=PART, look="within"),
            "between": Vary("between groups", uses=PART, look="between"),
            "mean": Vary("mean token", uses=PART, look="mean"),
        },
        primary=beats("baseline"),
        valid_if=(worse("control", than="intact"), worse("baseline", than="intact")),
        secondary=(
            worse("treatment", than="intact"),
            worse("within", than="intact"),
            worse("between", than="intact"),
            worse("mean", than="treatment"),
        ),
    ),
    Experiment(
        id="lower_layers",
        promise="Noise in a layer of the lower quarter raises the loss more than noise in one of the other layers.",
        paper="section 3.6, figure 6",
        protocol=NoisyLayers(),
        treatment=Vary("lower quarter", uses=PART, layers=(0.0, 0.25)),
        baseline=Vary("other layers", uses=PART, layers=(0.25, 1.0)),
        control=Vary("no noise", uses=PART, layers=(0.0, 0.125), how="none"),
        metric="loss",
        primary=beats("baseline"),
        valid_if=(
            Effect((("baseline", "", 1.0), ("control", "", -1.0)), "noise in the other layers costs something"),
            worse("control"),
        ),
        note="Noise is as strong as what the layer itself adds to its input.",
    ),
]
