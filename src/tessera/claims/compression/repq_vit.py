"""RepQ-ViT: one scale a layer, made from one a channel, keeps a tower of 4 bits usable without training."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lab.experiment import Checked, Exact, Experiment, Use, Vary, beats, worse
from tessera.lab.protocols.compression import Quantising

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def moved_scales(lab: Lab) -> Checked:
    """A norm with two readers, in double precision; the control keeps the fraction of the zero point, as the released code."""
    import torch
    from torch import nn

    from tessera.nn.quantise import fitted, uniform
    from tessera.parts.compression.repq_vit import reparameterise

    torch.manual_seed(0)
    norm = nn.LayerNorm(32).double()
    layers = [nn.Linear(32, 16).double(), nn.Linear(32, 8, bias=False).double()]
    norm.weight.data = torch.logspace(-1, 1.5, 32).double()
    norm.bias.data = 4 * torch.randn(32).double()
    x = torch.randn(64, 32).double()
    before, wanted = norm(x).detach(), [layer(norm(x)).detach() for layer in layers]
    scale, zero = fitted(before.t(), 4)
    codes = uniform(before, scale, zero, 4)
    one, middle = reparameterise(norm, layers, scale, zero)
    after = norm(x).detach()
    fraction = zero.mean()
    released = uniform(before * one / scale - (fraction - zero) * one, one, fraction, 4).round()
    differs = max(float((layer(after) - y).detach().abs().max()) for layer, y in zip(layers, wanted, strict=True))
    other = float((uniform(after, one, middle, 4) != codes).double().mean())
    return Checked(
        checks={"outputs within 1e-4": differs < 1e-4, "all codes the same": other == 0},
        measured={
            "outputs differ by": differs,
            "codes that differ": other,
            "codes that differ with a fractional zero point": float((released != codes).double().mean()),
        },
        shape="64 tokens of 32 channels, 4 bits",
    )


def shifts_alone(lab: Lab) -> Checked:
    """Every code, decoded as scale 2^(-c / 2) and by whole shifts."""
    import torch

    from tessera.parts.compression.repq_vit import log_values

    codes = torch.arange(16.0)
    scale = torch.tensor(0.83)
    found, wanted = log_values(codes, scale, 4), 0.83 * 2 ** (-codes / 2)
    beyond = log_values(torch.tensor([16.0, torch.inf]), scale, 4)
    differs = float(((found - wanted) / wanted).abs().max())
    return Checked(
        checks={"equal to 1e-6": differs <= 1e-6, "what is smaller than all codes is 0": not bool(beyond.any())},
        measured={"differs by": differs},
    )


def whole_numbers(lab: Lab) -> Checked:
    """Codes of input and weight multiplied as 64-bit integers, against the layer."""
    import torch
    from torch import nn

    from tessera.nn.quantise import Quantised, fitted, uniform

    torch.manual_seed(0)
    layer, x = nn.Linear(24, 10).double(), torch.randn(40, 24).double()
    scale, zero = fitted(x.reshape(1, -1), 4)
    made = Quantised(layer, 4, 4, (scale[0], zero[0]), fitted)
    with torch.no_grad():
        left = (uniform(x, scale, zero, 4) - zero).long()
        right = made.whole_codes().long() - made.zero[:, None].long()
        whole = (left @ right.t()).double() * scale * made.scale + layer.bias
        differs = float((whole - made(x)).abs().max())
    return Checked(checks={"equal to 1e-9": differs < 1e-9}, measured={"differs by": differs}, shape="24 -> 10 channels, 4 bits")


def one_scale(lab: Lab) -> Checked:
    """What the inputs of all quantised layers of a small tower keep beside their codes, reparameterised and by channel."""
    import torch

    from tessera.models.parts import create
    from tessera.nn.quantise import Quantised
    from tessera.parts.compression.repq_vit import RepQViT

    torch.manual_seed(0)
    options = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 2}
    tower, pixels = create("encoders", options, "encoder").eval(), torch.randn(4, 3, 32, 32)
    numbers = {}
    for norms in ("reparameterised", "channel"):
        made = RepQViT(RepQViT.Config(norms=norms)).compress(tower, {"pixel_values": pixels})
        numbers[norms] = [m.input_scale.numel() for m in made.modules() if isinstance(m, Quantised)]
    return Checked(
        checks={
            "one scale a layer": numbers["reparameterised"] == [1] * len(numbers["reparameterised"]),
            "one scale a channel without moving them": max(numbers["channel"]) == 24,
        },
        measured={norms: float(sum(found)) for norms, found in numbers.items()},
        shape="conv_vit of 2 blocks of width 24",
    )


CLAIMS = [
    Exact(
        id="moved_scales",
        promise="Moving the scales changes neither the outputs nor a single code.",
        paper="section 4.2, equations 7 to 11",
        run=moved_scales,
    ),
    Exact(
        id="shifts_alone",
        promise="Powers of the square root of 2 equal powers of 2 with a scale by parity.",
        paper="section 4.3, equations 12 to 15",
        run=shifts_alone,
    ),
    Exact(
        id="whole_numbers",
        promise="With one scale for all channels a product can be computed in integers.",
        paper="section 3",
        run=whole_numbers,
    ),
    Exact(id="one_scale", promise="The input of every layer has one scale for all channels.", paper="section 4.2", run=one_scale),
    Experiment(
        id="keeps_accuracy",
        promise="At 4 bits, the accuracy of a tower with outlier channels is higher with moved scales than with one fitted scale "
        "per layer.",
        paper="section 5.2, table 1",
        protocol=Quantising(),
        treatment=Use("repq_vit"),
        baseline=Use("repq_vit", norms="layer"),
        control=Use("repq_vit", norms="layer", ranges="minmax"),
        others={"float": Vary("float"), "by channel": Use("repq_vit", norms="channel")},
        primary=beats("baseline"),
        valid_if=(worse("control", than="float"),),
        secondary=(beats("control"), beats("by channel"), beats("float")),
        note="8 channels behind every norm are 30 times larger, and what reads them as much smaller.",
    ),
]
