"""S2 (Scaling on Scales): a frozen encoder sees an image at several sizes, each cut into views of the size that it knows.

Source: Shi et al., "When Do We Not Need Larger Vision Models?", 2024, arXiv:2403.13043. The image is resized to each scale; a
larger one is cut chessboard-wise into views of the encoder's own size, so that no position has to be interpolated; the views'
features are laid out as they were cut, averaged down to the raster of the encoder, and all scales are put together on channels.
The language model reads as many tokens as before: more pixels cost views, and a wider projector.

Deviations: images are made smaller with antialiasing, so that the first scale is what the encoder was trained on; the released
code resizes without (`antialias=False`). Scales are whole numbers, as the encoders' positions are learned. The paper's analysis
(reconstructing a larger model's features) is not here. A scale may be named twice: it adds channels, no pixels.

Shapes: M images, S = s max(scales) their side, s that of the encoder; k^2 views per image at scale k, on chessboards of k x k;
raster h x w of N tokens, D channels of the encoder, n scales: pixels [M, 3, S, S] -> features [M, N, n D].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.config import config
from tessera.errors import UserError
from tessera.lab.claim import Finding, claim
from tessera.models.views import EncoderViews, Layers
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def split(images: Tensor, k: int) -> Tensor:
    """[B, C, H, W] -> [k k B, C, H / k, W / k]: the views row by row, each for all images."""
    batch, channels, height, width = images.shape
    board = images.reshape(batch, channels, k, height // k, k, width // k)
    return board.permute(2, 4, 0, 1, 3, 5).reshape(k * k * batch, channels, height // k, width // k)


def merge(views: Tensor, k: int) -> Tensor:
    """[k k B, C, h, w] -> [B, C, k h, k w]: undoes `split`."""
    count, channels, height, width = views.shape
    board = views.reshape(k, k, count // (k * k), channels, height, width).permute(2, 3, 0, 4, 1, 5)
    return board.reshape(count // (k * k), channels, k * height, k * width)


def join(maps: Sequence[Tensor]) -> Tensor:
    """Maps [B, C_i, h_i, w_i] of the scales -> [B, sum of C_i, h, w] on the raster of the first one, by averaging areas."""
    size = maps[0].shape[-2:]
    averaged = (F.interpolate(m.float(), size, mode="area").to(m.dtype) if m.shape[-2:] != size else m for m in maps)
    return torch.cat(list(averaged), dim=1)


def join_prefix(tokens: Sequence[Tensor], images: int) -> Tensor:
    """Class and register tokens [k k B, P, D] of the scales -> [B, P, n D]: means over an image's views, side by side."""
    return torch.cat([t.unflatten(0, (-1, images)).mean(0) for t in tokens], dim=-1)


def resize(images: Tensor, side: int, antialias: bool) -> Tensor:
    """[B, C, H, W] -> [B, C, side, side], bicubic, in float32."""
    if images.shape[-2:] == (side, side):
        return images
    smaller = side < images.shape[-1]
    found = F.interpolate(images.float(), size=(side, side), mode="bicubic", antialias=antialias and smaller)
    return found.to(images.dtype)


@part("s2", socket="pixels", catalog=78)
class S2(EncoderViews):
    """Every encoder of a composed model at several scales."""

    @config
    class Config:
        """scales: multiples of the encoder's size, rising; antialias: when an image is made smaller."""

        scales: tuple[int, ...] = (1, 2)
        antialias: bool = True

        def validate_scales(self) -> None:
            rising = all(a <= b for a, b in zip(self.scales, self.scales[1:], strict=False))
            if not self.scales or self.scales[0] != 1 or not rising:
                raise ValueError(f"scales are rising whole numbers from 1, such as (1, 2), not {self.scales}.")

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.scales, self.antialias = tuple(config.scales), config.antialias

    def image_size(self, size: int) -> int:
        """The side of the largest scale."""
        return size * max(self.scales)

    def width(self, width: int) -> int:
        """The channels of all scales."""
        return width * len(self.scales)

    def forward(self, encode: Callable[[Tensor], Layers], pixels: Tensor, size: int, grid: tuple[int, int]) -> Layers:
        """Pixels [M, 3, S, S] -> [M, N, n D] for every layer of the encoder. Raises `UserError` for images of another size."""
        side = self.image_size(size)
        if pixels.shape[-2:] != (side, side):
            raise UserError(
                f"pixels 's2' with scales {self.scales} wants images of {side} x {side} pixels for an encoder of {size}, "
                f"not {pixels.shape[-1]} x {pixels.shape[-2]}."
            )
        found: list[list[Tensor]] = []
        for k in self.scales:
            layers = encode(split(resize(pixels, size * k, self.antialias), k))
            found.append([merge(layer.transpose(1, 2).unflatten(2, grid), k) for layer in layers])
        return tuple(join(maps).flatten(2).transpose(1, 2) for maps in zip(*found, strict=True))


def _naive(encode: Callable[[Tensor], Tensor], pixels: Tensor, size: int, grid: tuple[int, int], scales: Sequence[int]) -> Tensor:
    """What the paper says, one image, one view and one token at a time."""
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


@claim("views and features are laid out as in the paper", kind="exact", paper="section 3.1")
def equals_the_naive(lab: Lab) -> Finding:
    """Split and merge undo each other; scale 1 alone is the encoder; three scales equal a loop over images, views and tokens."""
    from tessera import registry
    from tessera.config import build

    torch.manual_seed(0)
    target = registry.get("encoders", "conv_vit").target
    encoder = target(build(target.Config, {"image_size": 32, "patch_size": 8, "width": 24, "depth": 2, "heads": 2})).eval()
    pixels = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        trip = all(torch.equal(merge(split(pixels, k), k), pixels) for k in (1, 2, 3))
        alone = S2(S2.Config(scales=(1,)))(lambda v: (encoder(v),), pixels[..., :32, :32], 32, encoder.grid)[0]
        ours = S2(S2.Config(scales=(1, 2, 3), antialias=False))(lambda v: (encoder(v),), pixels, 32, encoder.grid)[0]
        apart = float((ours - _naive(encoder, pixels, 32, encoder.grid, (1, 2, 3))).abs().max())
        same = torch.equal(alone, encoder(pixels[..., :32, :32]))
    return Finding(
        checks={
            "split and merge undo each other": trip,
            "one scale is the encoder, bit for bit": same,
            "three scales equal the loop to 1e-5": apart < 1e-5,
        },
        measured={"largest difference": apart},
        shape="conv_vit of 32 pixels, width 24, float32; 2 images of 96 pixels",
    )


SHRINK = 3
"""How many times smaller than the image the scene is drawn, on grey, so that most things are 6 to 15 pixels wide at 1x."""


@claim("small things are seen at two scales, with as many tokens", kind="effect", paper="section 4.3, table 5")
def sees_small_things(lab: Lab) -> Finding:
    """The kind of a small thing, read by a linear layer from the one token in which its centre lies: of the object expert at 1x,
    at 1x and 2x, or twice at 1x (as many channels, no more pixels). Seeds choose the scenes that the layer is trained on. (Small
    language models, which were to read the tokens first, learned nothing from scenes this small in 400 steps, at any scale.)"""
    from tessera.lab.lab import mean, spread

    tests = _small_things(lab, "test", 400, 0)
    found: dict[str, list[float]] = {"1x": [], "1x twice": [], "1x and 2x": []}
    for seed in lab.seeds:
        lesson = _small_things(lab, "train", 800, seed)
        for name, values in found.items():
            values.append(_read(_of_scales(lesson[0], name), lesson[1], _of_scales(tests[0], name), tests[1]))
    score = {name: mean(values) for name, values in found.items()}
    gain = score["1x and 2x"] - score["1x"]
    return Finding(
        checks={
            "15 points above one scale": gain >= 0.15,
            "above one scale at every seed": all(b > a for a, b in zip(found["1x"], found["1x and 2x"], strict=True)),
            "channels without pixels bring under half of the gain": score["1x twice"] - score["1x"] < gain / 2,
        },
        measured={"accuracy, 1x and 2x": score["1x and 2x"]},
        baseline={
            "accuracy, 1x": score["1x"],
            "always the most frequent kind": float(tests[1].bincount().max()) / len(tests[1]),
        },
        control={"accuracy, 1x twice": score["1x twice"]},
        seeds=lab.seeds,
        spread={f"accuracy, {name}": spread(values) for name, values in found.items()},
        shape=f"{len(tests[1])} things in 400 scenes of 1 to 3; a linear layer trained on those of 800; 196 tokens an image",
        note="The tower was trained on things of 17 pixels and more.",
    )


def _small_things(lab: Lab, split: str, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Tokens [T, 2 D] in which the centres of small things lie, at 1x and at 2x, and the things' categories [T]."""
    import numpy as np

    from tessera.training.dense import to_pixels
    from tessera.world.concepts import by_category

    encoder = lab.reference("object-expert")[0].encoder
    size, (rows, columns) = int(encoder.image_size), encoder.grid
    views, kinds = S2(S2.Config()), sorted(by_category("base"))
    world = lab.world(split=split, seed=seed, kinds={"scene": 1.0}, things=(1, 3))
    side, small = 2 * size, 2 * size // SHRINK
    edge = (side - small) // 2
    tokens, labels = list[Tensor](), list[int]()
    for start in range(0, count, 25):
        samples = [world[i] for i in range(start, min(start + 25, count))]
        boards = np.full((len(samples), side, side, 3), 128, np.uint8)
        for board, sample in zip(boards, samples, strict=True):
            board[edge : edge + small, edge : edge + small] = np.asarray(sample.drawings(size=(small, small))[0].image)
        with torch.no_grad():
            features = views(lambda v: (encoder(v),), to_pixels(list(boards)), size, encoder.grid)[0]
        for image, sample in zip(features, samples, strict=True):
            for thing in sample.truth():
                x, y = ((edge + small * (low + high) / 2) / side for low, high in zip(thing.box[:2], thing.box[2:], strict=True))
                tokens.append(image[int(y * rows) * columns + int(x * columns)])
                labels.append(kinds.index(thing.category))
    return torch.stack(tokens), torch.tensor(labels)


def _of_scales(tokens: Tensor, name: str) -> Tensor:
    """Of tokens at 1x and 2x [T, 2 D] those that a side of the comparison has."""
    one = tokens.chunk(2, dim=-1)[0]
    return {"1x": one, "1x twice": torch.cat([one, one], dim=-1), "1x and 2x": tokens}[name]


def _read(lesson: Tensor, labels: Tensor, tests: Tensor, wanted: Tensor, steps: int = 200) -> float:
    """Accuracy on `tests` of a linear layer that was trained on all of a lesson at once."""
    mean, deviation = lesson.mean(0), lesson.std(0) + 1e-6
    layer = torch.nn.Linear(lesson.shape[1], int(max(labels.max(), wanted.max())) + 1)
    for parameter in layer.parameters():
        torch.nn.init.zeros_(parameter)
    optimiser = torch.optim.AdamW(layer.parameters(), 1e-2, weight_decay=0.1)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(layer((lesson - mean) / deviation), labels).backward()
        optimiser.step()
    with torch.no_grad():
        return float((layer((tests - mean) / deviation).argmax(-1) == wanted).double().mean())


@claim("twice the side costs five times the views and no token", kind="cost", paper="section 5.2")
def costs_views(lab: Lab) -> Finding:
    """FLOPs of the reference model's first expert at one and at two scales, tokens that the language model reads."""
    model, _ = lab.reference("object-expert")
    encoder = model.encoder
    size = int(encoder.image_size)
    one, two = S2(S2.Config(scales=(1,))), S2(S2.Config(scales=(1, 2)))
    small, large = torch.zeros(4, 3, size, size), torch.zeros(4, 3, 2 * size, 2 * size)

    def look(views: S2, pixels: Tensor) -> Tensor:
        with torch.no_grad():
            return views(lambda v: (encoder(v),), pixels, size, encoder.grid)[0]

    flops = lab.flops(lambda: look(two, large)) / lab.flops(lambda: look(one, small))
    taken = lab.timing(lambda: look(two, large), lambda: look(one, small))
    tokens = look(two, large).shape[1] / look(one, small).shape[1]
    return Finding(
        checks={"five times the FLOPs, within 1 %": abs(flops / 5 - 1) < 0.01, "as many tokens": tokens == 1.0},
        measured={"FLOPs, times": flops, "tokens, times": tokens, "time, times": taken.median},
        shape=f"4 images of {size} and {2 * size} pixels, object expert, float32, {lab.shape()}",
    )
