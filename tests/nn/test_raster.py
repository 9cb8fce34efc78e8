"""Layouts as flat tensors."""

from __future__ import annotations

import pytest
import torch

from tessera.errors import TesseraError
from tessera.nn.layout import Block, Layout
from tessera.nn.raster import for_rows, on_prompt, raster

TILED = Layout(4 + 2 * 4, (Block(0, 2, 2), Block(4, 2, 3, newline=True, whole=False)))
LEADING = Layout(1 + 2, (Block(1, 1, 2),))


def test_every_token_has_its_block_row_and_column() -> None:
    found = raster([[TILED], [LEADING, Layout(2)]])
    assert found.block.tolist() == [0] * 4 + [1] * 8 + [-1, 2, 2] + [-1, -1]
    assert found.row.tolist() == [0, 0, 1, 1] + [0] * 4 + [1] * 4 + [-1, 0, 0] + [-1, -1]
    assert found.column.tolist() == [0, 1, 0, 1] + [0, 1, 2, -1] * 2 + [-1, 0, 1] + [-1, -1]
    assert found.newline.nonzero().flatten().tolist() == [7, 11]
    assert found.blocks == ((0, TILED.blocks[0]), (0, TILED.blocks[1]), (1, LEADING.blocks[0]))


def test_a_block_outside_of_its_image_is_our_fault() -> None:
    with pytest.raises(TesseraError, match="2 x 2 at 1 is not inside of 4 tokens"):
        raster([[Layout(4, (Block(1, 2, 2),))]])


def test_values_go_to_the_prompts_visual_tokens() -> None:
    visual = torch.tensor([[False, True, True], [True, False, False]])
    assert on_prompt(torch.tensor([5, 6, 7]), visual, -1).tolist() == [[-1, 5, 6], [7, -1, -1]]
    with pytest.raises(TesseraError, match="tell of 2 visual tokens, the prompts have 3"):
        on_prompt(torch.tensor([5, 6]), visual, -1)


def test_rows_that_beams_repeat_share_their_values() -> None:
    visual = torch.tensor([[True, True], [True, True], [True, False], [True, False]])
    assert for_rows(torch.tensor([1, 2, 3]), visual).tolist() == [1, 2, 1, 2, 3, 3]
    assert for_rows(torch.tensor([1, 2]), visual[:1]).tolist() == [1, 2]
    for wrong in (torch.tensor([1, 2]), torch.tensor([1, 2, 3, 4]), torch.tensor([])):
        with pytest.raises(TesseraError, match=f"values of {len(wrong)} visual tokens; the prompts have 6"):
            for_rows(wrong, visual)
