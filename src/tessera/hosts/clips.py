"""What a part of socket `video` is: it reads the frames of a clip and says which of their visual tokens the language model gets.

A clip is a run of images of one prompt, in the order in which they are shown, that have the same size. A video part is a token
reduction that sees the pixels under every visual token; everything about prompts, rasters and families is done here.

Legend: F frames of a clip, n visual tokens of a frame, P pixel values under a token.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import ClassVar

import torch
from torch import Tensor

from tessera.errors import UserError
from tessera.hosts.contract import Host
from tessera.hosts.part import LayerView
from tessera.hosts.prompts import Images
from tessera.hosts.sequence import images_of_rows
from tessera.hosts.token_reduction import TokenReduction
from tessera.nn.layout import Layout
from tessera.nn.raster import on_prompt


class ClipPart(TokenReduction):
    """Drops visual tokens of clips in front of the first decoder layer. Write `stays`; a single image is a clip of one frame."""

    needs = ("raster",)
    reads_question = False
    images: ClassVar[int] = 2

    def stays(self, clip: Tensor) -> Tensor:
        """Pixels [F, n, P] of a clip, as the model is given them -> [F, n] bool: the tokens that go on."""
        raise NotImplementedError

    def shares(self, layers: int) -> Mapping[int, float]:
        """The first layer; how many tokens go on depends on the clip."""
        return {0: 1.0}

    def keep(self, view: LayerView, ratio: float) -> Tensor:
        """Asks `stays` for every clip of every row. Raises `UserError` for a family whose pixels are not known by token."""
        sequence = view.sequence
        frames = pixels_of_tokens(view.host, sequence.images)
        rows = images_of_rows(sequence.visual, [len(frame) for frame in frames])
        found = [self.stays(torch.stack(clip)).flatten() for row in rows for clip in clips([frames[image] for image in row])]
        keep = on_prompt(torch.cat(found).to(view.visual.device), sequence.visual, True)
        return keep.gather(1, view.index) | ~view.visual


def clips(frames: Sequence[Tensor]) -> list[list[Tensor]]:
    """Neighbours [n, P] of the same shape, together."""
    return [list(run) for _, run in groupby(frames, key=lambda frame: frame.shape)]


def pixels_of_tokens(host: Host, images: Images | None) -> list[Tensor]:
    """Per image of a prompt, in order: the pixels under each of its visual tokens, [n, P].

    Raises `UserError` for features that were computed before, and for families whose images are no single raster.
    """
    if images is None:
        raise UserError("the images of this prompt were not encoded inside the context: give pixels, not features.")
    pixels = images.inputs.get("pixel_values")
    layouts = host.architecture.family.layouts(host.model, images.inputs)
    whole = all(len(own.blocks) == 1 and own.blocks[0].rows * own.blocks[0].columns == own.tokens for own in layouts)
    if isinstance(pixels, Tensor) and whole:
        if pixels.dim() == 4 and len(pixels) == len(layouts):
            return [squares(image, layout) for image, layout in zip(pixels, layouts, strict=True)]
        patches = len(pixels) // max(1, sum(layout.tokens for layout in layouts))
        if pixels.dim() == 2 and patches * sum(layout.tokens for layout in layouts) == len(pixels):
            # Families that take patches in one row order them by tokens.
            own = pixels.split([layout.tokens * patches for layout in layouts])
            return [image.reshape(layout.tokens, -1) for image, layout in zip(own, layouts, strict=True)]
    raise UserError(f"frames are compared by the pixels under their visual tokens, which are not known for {host.title}.")


def squares(image: Tensor, layout: Layout) -> Tensor:
    """Pixels [3, H, W] -> [n, P]; what is left at the right and lower edge belongs to no token."""
    rows, columns = layout.blocks[0].rows, layout.blocks[0].columns
    high, wide = image.shape[-2] // rows, image.shape[-1] // columns
    cut = image[:, : rows * high, : columns * wide]
    return cut.unflatten(2, (columns, wide)).unflatten(1, (rows, high)).permute(1, 3, 0, 2, 4).reshape(rows * columns, -1)
