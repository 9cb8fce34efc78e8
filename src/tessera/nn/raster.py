"""Where visual tokens stand in their images: layouts of a host as flat tensors.

Shapes: V visual tokens of a batch, row by row in prompt order; B rows, S tokens of the prompt, K tokens left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tessera.errors import TesseraError
from tessera.nn.layout import Block, Layout


@dataclass(frozen=True, slots=True)
class Raster:
    """The places of V visual tokens.

    block    [V] int64, number of the block among `blocks`, -1 for tokens of none
    row      [V] int64, row in the block, also of a newline; -1 outside of blocks
    column   [V] int64, column in the block; -1 at newlines and outside of blocks
    newline  [V] bool, ends a row of a block and shows no place
    blocks   (image, block) of all images, in order; images are numbered over the whole batch
    """

    block: Tensor
    row: Tensor
    column: Tensor
    newline: Tensor
    blocks: tuple[tuple[int, Block], ...]


def raster(layouts: Sequence[Sequence[Layout]], device: torch.device | None = None) -> Raster:
    """The raster of a batch's images, given per row. Raises `TesseraError` if a block does not fit into its image's tokens."""
    images = [layout for row in layouts for layout in row]
    total = sum(layout.tokens for layout in images)
    block, row, column = (torch.full((total,), -1, dtype=torch.int64) for _ in range(3))
    newline = torch.zeros(total, dtype=torch.bool)
    blocks: list[tuple[int, Block]] = []
    offset = 0
    for image, layout in enumerate(images):
        for shape in layout.blocks:
            width = shape.columns + shape.newline
            start, stop = offset + shape.start, offset + shape.start + shape.rows * width
            if shape.start < 0 or stop > offset + layout.tokens:
                raise TesseraError(
                    f"a block of {shape.rows} x {shape.columns} at {shape.start} is not inside of {layout.tokens} tokens."
                )
            place = torch.arange(shape.rows * width)
            row[start:stop], column[start:stop] = place // width, place % width
            block[start:stop] = len(blocks)
            if shape.newline:
                ends = column[start:stop] == shape.columns
                newline[start:stop] = ends
                column[start:stop].masked_fill_(ends, -1)
            blocks.append((image, shape))
        offset += layout.tokens
    return Raster(block.to(device), row.to(device), column.to(device), newline.to(device), tuple(blocks))


def on_prompt(values: Tensor, visual: Tensor, fill: int) -> Tensor:
    """From values [V] of the visual tokens of the prompts `visual [B, S]` -> [B, S], with `fill` at all other tokens.

    Raises `TesseraError` if there are more or fewer values than visual tokens.
    """
    if values.shape[0] != int(visual.sum()):
        raise TesseraError(f"the host's layouts tell of {values.shape[0]} visual tokens, the prompts have {int(visual.sum())}.")
    full = values.new_full(visual.shape, fill)
    full[visual] = values
    return full


def for_rows(values: Tensor, visual: Tensor) -> Tensor:
    """Values of all images' tokens -> [V] of all rows' visual tokens: rows of `visual [B, S]` that beams repeat share theirs.

    Raises `TesseraError` if the values are not those of the rows' tokens.
    """
    total, given = int(visual.sum()), values.shape[0]
    if given == total:
        return values
    repeats = total // max(1, given)
    per_row = visual[::repeats].sum(1).tolist() if repeats else []
    if sum(per_row) != given:
        raise TesseraError(f"there are values of {given} visual tokens; the prompts have {total}.")
    return torch.cat([row for row in values.split(per_row) for _ in range(repeats)])
