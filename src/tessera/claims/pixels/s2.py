"""S2: a frozen encoder at two scales represents small objects that it misses at one, with as many tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tessera.lab.experiment import Build, Checked, Cost, Exact, Experiment, Paper, Vary, beats, worse
from tessera.lab.protocols.frozen_features import SmallThings
from tessera.lab.protocols.operations import Operations

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.lab.lab import Lab


def layout(lab: Lab) -> Checked:
    """Split and merge undo each other; three scales equal a loop over images, views and tokens; as many tokens at any scales."""
    import torch

    from tessera.models.parts import create
    from tessera.parts.pixels.s2 import S2, merge, split

    torch.manual_seed(0)
    options = {"kind": "conv_vit", "image_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 2}
    encoder = create("encoders", options, "encoder").eval()
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        trip = all(torch.equal(merge(split(pixels, k), k), pixels) for k in (1, 2, 3))
        ours = S2(S2.Config(scales=(1, 2, 3), antialias=False))(lambda v: (encoder(v),), pixels, 32, encoder.grid)[0]
        naive = _naive(encoder, pixels, 32, encoder.grid, (1, 2, 3))
    apart = float((ours - naive).abs().max())
    return Checked(
        checks={
            "split and merge undo each other": trip,
            "three scales equal the loop to 1e-5": apart < 1e-5,
            "16 tokens of three times the channels": ours.shape == (2, 16, 72),
        },
        measured={"largest difference": apart},
        shape="conv_vit of 32 pixels, width 24, float32; 2 images of 96 pixels",
    )


def _naive(encode: Callable[[Tensor], Tensor], pixels: Tensor, size: int, grid: tuple[int, int], scales: Sequence[int]) -> Tensor:
    """What the paper says, one image, one view and one token at a time."""
    import torch
    from torch.nn import functional as F

    rows, columns = grid
    images = []
    for image in pixels:
        channels: list[Tensor] = []
        for k in scales:
            large = image[None]
            if k * size != image.shape[-1]:
                large = F.interpolate(large, size=(k * size, k * size), mode="bicubic")
            board = torch.zeros(k * rows, k * columns, 0)
            for y in range(k):
                line = []
                for x in range(k):
                    view = large[:, :, y * size : (y + 1) * size, x * size : (x + 1) * size]
                    line.append(encode(view)[0].reshape(rows, columns, -1))
                whole = torch.cat(line, dim=1)
                board = whole if y == 0 else torch.cat([board, whole], dim=0)
            cells = [board[r * k : (r + 1) * k, c * k : (c + 1) * k].mean((0, 1)) for r in range(rows) for c in range(columns)]
            channels.append(torch.stack(cells))
        images.append(torch.cat(channels, dim=-1))
    return torch.stack(images)


CLAIMS = [
    Exact(
        id="layout",
        promise="Views and features are laid out as in the paper, with as many tokens as at one scale.",
        paper="section 3.1",
        run=layout,
    ),
    Experiment(
        id="small_things",
        promise="The accuracy of a linear layer on small objects is higher with features at 1x and 2x than with features at 1x.",
        paper="section 4.3, table 5",
        protocol=SmallThings(),
        treatment=Build("1x and 2x", pixels={"kind": "s2", "scales": (1, 2)}),
        baseline=Build("1x", pixels={"kind": "s2", "scales": (1,)}),
        control=Build("1x twice", pixels={"kind": "s2", "scales": (1, 1)}),
        primary=beats("baseline"),
        valid_if=(worse("control"),),
        note="The control has the channels of the treatment and no more pixels.",
    ),
    Cost(
        id="views",
        promise="At twice the image's side the encoder takes five times the operations: one view at 1x and four at 2x.",
        paper="section 3.1",
        protocol=Operations(),
        treatment=Vary("views", uses=("s2",), scales=(1,)),
        baseline=Vary("views", uses=("s2",), scales=(1, 2)),
        at_least={"flop ratio": Paper(5.0, "section 3.1: k x k views at scale k")},
        at_most={"flop ratio": Paper(5.0, "section 3.1: k x k views at scale k")},
    ),
]
