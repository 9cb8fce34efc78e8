"""HiLo: most heads on an averaged map and some in windows beat windows alone, with fewer operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tessera.lab.experiment import Build, Checked, Cost, Exact, Experiment, Vary, beats, worse
from tessera.lab.protocols.backbone import Backbone
from tessera.lab.protocols.operations import Operations

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tessera.lab.lab import Lab
    from tessera.parts.encoders.hilo import HiLo


def equations(lab: Lab) -> Checked:
    """Against torch's own multi-head attention on the same weights (s = 1), the same inside of every window (alpha = 0), a naive
    reading of both groups, head by head; and deformable merging without offsets against a plain convolution."""
    import torch
    from torch.nn import functional as F

    from tessera.parts.encoders.hilo import HiLo, deformable

    torch.manual_seed(0)
    x = torch.randn(2, 6, 8, 24, dtype=torch.float64)
    whole, local = HiLo(24, 4, window=1).double(), HiLo(24, 4, window=2, alpha=0.0).double()
    weight = torch.cat([whole.low_query.weight, whole.low_key_value.weight])
    bias = torch.cat([whole.low_query.bias, whole.low_key_value.bias])
    windows = x.view(2, 3, 2, 4, 2, 24).transpose(2, 3).reshape(24, 4, 24)
    inside = _plain(windows, local.high_qkv.weight, local.high_qkv.bias, local.high_out, 4)
    mixed = HiLo(24, 4, window=2, alpha=0.5).double()
    merge = torch.randn(5, 24, 2, 2, dtype=torch.float64)
    still = deformable(x.permute(0, 3, 1, 2), x.new_zeros(2, 8, 3, 4), merge, None)
    with torch.no_grad():
        differences = {
            "s = 1": whole(x).flatten(1, 2) - _plain(x.flatten(1, 2), weight, bias, whole.low_out, 4),
            "alpha = 0": local(x) - inside.view(2, 3, 4, 2, 2, 24).transpose(2, 3).reshape(x.shape),
            "both groups": mixed(x) - _naive(mixed, x),
            "merging": still - F.conv2d(x.permute(0, 3, 1, 2), merge, stride=2),
        }
    found = {name: float(d.abs().max()) for name, d in differences.items()}
    return Checked(
        checks={f"{name}: to 1e-12": d < 1e-12 for name, d in found.items()}, measured=found, shape="2 x 6 x 8 places, float64"
    )


def _plain(x: Tensor, weight: Tensor, bias: Tensor, out: nn.Linear, heads: int) -> Tensor:
    """Torch's multi-head attention [B, N, D] -> [B, N, D]."""
    from torch.nn import functional as F

    words = x.transpose(0, 1)
    found, _ = F.multi_head_attention_forward(
        words, words, words, x.shape[-1], heads, weight, bias, None, None, False, 0.0, out.weight, out.bias, training=False
    )  # fmt: skip
    return found.transpose(0, 1)


def _naive(module: HiLo, x: Tensor) -> Tensor:
    """Image by image, place by place, head by head."""
    import torch

    s, size = module.window, x.shape[-1] // (module.high_heads + module.low_heads)
    batch, rows, columns, _ = x.shape
    high, low = [], []
    for b in range(batch):
        means = [x[b, r : r + s, c : c + s].mean((0, 1)) for r in range(0, rows, s) for c in range(0, columns, s)]
        for r in range(rows):
            for c in range(columns):
                top, left = r // s * s, c // s * s
                window = x[b, top : top + s, left : left + s].flatten(0, 1)
                qkv = module.high_qkv(torch.cat([x[b, r, c][None], window]))
                q, k, v = qkv[:1].chunk(3, -1)[0], *(t[1:] for t in qkv.chunk(3, -1)[1:])
                high.append(torch.cat([_head(q, k, v, h, size) for h in range(module.high_heads)]))
                k, v = module.low_key_value(torch.stack(means)).chunk(2, -1)
                q = module.low_query(x[b, r, c])[None]
                low.append(torch.cat([_head(q, k, v, h, size) for h in range(module.low_heads)]))
    joined = torch.cat([module.high_out(torch.stack(high)), module.low_out(torch.stack(low))], -1)
    return joined.view(x.shape)


def _head(q: Tensor, k: Tensor, v: Tensor, head: int, size: int) -> Tensor:
    own = slice(head * size, (head + 1) * size)
    return (q[0, own] @ k[:, own].T / size**0.5).softmax(-1) @ v[:, own]


SMALL = {"kind": "hilo", "widths": (48, 96), "depths": (1, 3), "heads": (2, 4), "mlp_ratio": 2}

CLAIMS = [
    Exact(
        id="equations",
        promise="With s = 1 it is multi-head attention, with alpha = 0 window attention; otherwise it equals its equations.",
        paper="section 4.1",
        run=equations,
    ),
    Experiment(
        id="beats_windows",
        promise="The accuracy of a tower with HiLo is higher than that of the same tower with window attention alone.",
        paper="section 5.2, effect of alpha",
        protocol=Backbone(),
        treatment=Build("HiLo", encoder=SMALL),
        baseline=Build("windows alone", encoder={**SMALL, "alpha": 0.0}),
        control=Build("no attention", encoder={**SMALL, "windows": (0, 0)}),
        others={"full attention": Build("full attention", encoder={**SMALL, "windows": (0, 1)})},
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        secondary=(beats("full attention"),),
        note="What is seen at one place has to get to all others.",
    ),
    *(
        Cost(
            id=f"cheaper_than_{name}",
            promise=f"HiLo takes fewer operations than attention {words}.",
            paper="abstract, figure 4",
            protocol=Operations(),
            treatment=Vary("attention", uses=("hilo",)),
            baseline=Vary("attention", uses=("hilo",), **settings),
            saves=("flop ratio",),
            amended=("First at least 1, which no saving at all would have passed.",),
            note=note,
        )
        for name, words, settings, note in (
            ("reduction", "with spatial reduction", {"kind": "reduced"}, "The abstract's 1.4 is of the time on a processor."),
            ("windows", "in windows of 7", {"window": 7, "alpha": 0.0}, "The abstract's 1.6 is of the time on a processor."),
        )
    ),
]
