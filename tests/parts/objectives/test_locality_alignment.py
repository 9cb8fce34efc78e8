from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.training.small import made, small

from tessera.config import build
from tessera.errors import TesseraError, UserError
from tessera.parts.encoders.transformers_vision import TINY, TransformersVision
from tessera.parts.objectives.locality_alignment import (
    LocalityAlignment,
    draw_masks,
    mask_pixels,
    patch_side,
    without_last,
)
from tessera.training.objective import Subject
from tessera.world import World

WORLD = World(split="train", width=64, height=64, kinds={"scene": 1.0})


def prepared(recipe: str = "nano_clip", **options: object) -> tuple[torch.nn.Module, LocalityAlignment]:
    model, processor = made(small(recipe))
    part = LocalityAlignment(build(LocalityAlignment.Config, {"heads": 2, **options}))
    part.prepare(model, processor)
    return model, part


def test_masks_come_in_threes() -> None:
    masks = draw_masks((1, 2), 64)
    assert masks.shape == (3, 64) and masks.dtype == np.float32
    assert (masks[0] + masks[1] == 1).all() and masks[2].all()
    assert len(draw_masks((1, 2), 64, opposite=False)) == 2 and len(draw_masks((1, 2), 64, False, False)) == 1
    assert (draw_masks((1, 2), 64) == masks).all() and (draw_masks((1, 3), 64) != masks).any()


def masked_by_loops(pixels: torch.Tensor, mask: torch.Tensor, grid: tuple[int, int], patch: int) -> torch.Tensor:
    shown = torch.zeros_like(pixels)
    for image in range(len(mask)):
        for number in range(grid[0] * grid[1]):
            if mask[image, number]:
                top, left = (patch * place for place in divmod(number, grid[1]))
                inside = (image, slice(None), slice(top, top + patch), slice(left, left + patch))
                shown[inside] = pixels[inside]
    return shown


@pytest.mark.parametrize(
    ("size", "patch"),
    [((32, 32), 8), ((384, 384), 14), ((30, 30), 16), ((20, 20), 7), ((41, 33), 8)],
    ids=lambda value: "x".join(map(str, value)) if isinstance(value, tuple) else str(value),
)
def test_hidden_patches_and_what_no_patch_covers_are_zero_and_shown_ones_untouched(size: tuple[int, int], patch: int) -> None:
    grid = (size[0] // patch, size[1] // patch)
    pixels = torch.rand(3, 3, *size) + 0.1
    masks = torch.from_numpy(draw_masks((5, patch), grid[0] * grid[1]))
    found = mask_pixels(pixels, masks, grid, patch)
    assert torch.equal(found, masked_by_loops(pixels, masks, grid, patch))
    assert int((found[2, 0] > 0).sum()) == grid[0] * grid[1] * patch**2  # the last mask shows every patch
    with pytest.raises(TesseraError, match="do not fit"):
        mask_pixels(pixels, torch.ones(1, (grid[0] + 1) * grid[1]), (grid[0] + 1, grid[1]), patch)


@pytest.mark.parametrize("size", [30, 32, 38])
def test_the_mask_hides_what_the_encoders_own_patches_see(size: int) -> None:
    """A tower's embedding of a hidden patch is that of a blank one, and its embedding of a shown patch that of the image."""
    tower = {**TINY["tower"], "image_size": size, "patch_size": 8}
    encoder: Any = TransformersVision(TransformersVision.Config(tower=tower, layer=0))
    assert patch_side(encoder) == 8
    pixels, count = torch.randn(1, 3, size, size), encoder.grid[0] * encoder.grid[1]
    mask = torch.from_numpy(draw_masks((3, size), count)[:1])
    with torch.no_grad():
        shown, image, blank = (
            encoder(p)[0] for p in (mask_pixels(pixels, mask, encoder.grid, 8), pixels, torch.zeros_like(pixels))
        )
    assert 0 < int(mask.sum()) < count
    torch.testing.assert_close(shown, torch.where(mask[0, :, None] > 0, image, blank), rtol=0, atol=1e-6)
    assert float((image - blank).abs().amax(1).min()) > 1e-3


def test_it_prepares_and_learns_where_patches_do_not_fill_the_image() -> None:
    tower = {**TINY["tower"], "image_size": 30, "patch_size": 8}
    model: Any = torch.nn.Module()
    model.encoder = TransformersVision(TransformersVision.Config(tower=tower))
    part = LocalityAlignment(build(LocalityAlignment.Config, {"heads": 2}))
    part.prepare(model, None)
    masks = np.stack([draw_masks((i,), 9) for i in (0, 1)])
    batch = {"pixel_values": torch.randn(2, 3, 30, 30), "masks": torch.from_numpy(masks)}
    loss = part.loss(model, batch, None).loss_sum
    beside = batch["pixel_values"].clone()
    beside[..., 24:, :] += 1
    beside[..., 24:] += 1
    assert torch.isfinite(loss)
    torch.testing.assert_close(part.loss(model, {**batch, "pixel_values": beside}, None).loss_sum, loss, rtol=1e-5, atol=0)
    batch["pixel_values"][..., :24, :24] += 1
    assert abs(part.loss(model, batch, None).loss_sum - loss) > 1e-3 * loss


def test_other_encoders_patches_follow_from_their_grid() -> None:
    model, _ = prepared()
    assert patch_side(model.encoder) == 8


def test_the_loss_falls_and_trains_encoder_and_decoder_alone() -> None:
    model, part = prepared()
    subject = Subject(model, part)
    assert subject.sockets().keys() == {"encoder", "objective"}
    batch = part.collate([WORLD], None, 4)(range(4))
    assert batch["masks"].shape == (4, 3, 64)
    before = [p.detach().clone() for p in part.teacher.held.parameters()]
    optimizer = torch.optim.AdamW([*model.encoder.parameters(), *part.parameters()], lr=3e-3)  # type: ignore[union-attr]
    losses = []
    for _ in range(30):
        loss = subject(**batch)
        losses.append(float(loss.loss_sum.detach() / loss.loss_weight))
        loss.loss_sum.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.9 * losses[0]
    assert all(torch.equal(a, b) for a, b in zip(before, part.teacher.held.parameters(), strict=True))
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("encoder."))


def test_an_embedding_that_is_hidden_tells_nothing() -> None:
    """What the decoder says under a mask does not depend on the embeddings that the mask hides."""
    _, part = prepared()
    mask = torch.zeros(1, 64)
    mask[0, :10] = 1
    for block in part.decoder.blocks:
        torch.nn.init.ones_(block.scale1)  # type: ignore[arg-type]
    embedded = torch.randn(1, 64, 16)
    other = embedded.clone()
    other[:, 10:] += 1
    with torch.no_grad():
        assert torch.equal(part.decoder(embedded, mask), part.decoder(other, mask))
        other[:, 0] += 1
        assert not torch.equal(part.decoder(embedded, mask), part.decoder(other, mask))


def test_the_teacher_lacks_the_last_blocks() -> None:
    model, part = prepared(skip=1)
    encoder = model.encoder
    assert len(part.teacher.held.blocks) == len(encoder.blocks) - 1  # type: ignore[arg-type, union-attr]
    assert len(encoder.blocks) == 2  # type: ignore[arg-type, union-attr]
    with pytest.raises(UserError, match="2"):
        without_last(encoder, 2)  # type: ignore[arg-type]


def test_it_aligns_an_encoder_of_a_composed_model() -> None:
    model, part = prepared("nano")
    assert part.sockets(model).keys() == {"encoder"}
    loss = part.loss(model, part.collate([WORLD], None, 2)(range(2)), None)
    assert torch.isfinite(loss.loss_sum)
    with pytest.raises(UserError, match="encoder 3"):
        prepared("nano", encoder=3)


def test_a_shuffled_teacher_sees_other_masks() -> None:
    _, part = prepared(shuffled=True)
    batch = part.collate([WORLD], None, 2)(range(2))
    assert not torch.equal(batch["masks"], batch["teacher_masks"])


@pytest.mark.parametrize("loss", ["mse", "cosine"])
def test_both_losses_weigh_images_alike(loss: str) -> None:
    model, part = prepared(loss=loss)
    batch = part.collate([WORLD], None, 3)(range(3))
    whole = part.loss(model, batch, None).loss_sum.detach()
    parts = [part.loss(model, {k: v[i : i + 1] for k, v in batch.items()}, None).loss_sum.detach() for i in range(3)]
    assert float(whole) == pytest.approx(float(sum(parts)), rel=1e-4)


@pytest.mark.parametrize("options", [{"skip": -1}, {"depth": 0}, {"width": 10, "heads": 4}, {"loss": "l1"}])
def test_bad_options_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(UserError):
        build(LocalityAlignment.Config, options)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match="heads"):
        prepared(heads=3)
