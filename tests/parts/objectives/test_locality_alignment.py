from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tests.training.small import made, small

from tessera.config import build
from tessera.errors import UserError
from tessera.lab.lab import Lab
from tessera.parts.objectives.locality_alignment import (
    LocalityAlignment,
    draw_masks,
    equals_the_method,
    mask_pixels,
    masks_are_uniform,
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


def test_the_exact_claims_hold(tmp_path: Path) -> None:
    for claim in (masks_are_uniform, equals_the_method):
        assert claim(Lab(cache=tmp_path)).verdict == "holds"


def test_masks_come_in_threes() -> None:
    masks = draw_masks((1, 2), 64)
    assert masks.shape == (3, 64) and masks.dtype == np.float32
    assert (masks[0] + masks[1] == 1).all() and masks[2].all()
    assert len(draw_masks((1, 2), 64, opposite=False)) == 2 and len(draw_masks((1, 2), 64, False, False)) == 1
    assert (draw_masks((1, 2), 64) == masks).all() and (draw_masks((1, 3), 64) != masks).any()


def test_hidden_patches_are_zero_pixels_and_shown_ones_untouched() -> None:
    pixels = torch.randn(1, 3, 32, 32)
    mask = torch.zeros(1, 16)
    mask[0, 5] = 1
    shown = mask_pixels(pixels, mask, (4, 4))
    assert torch.equal(shown[..., 8:16, 8:16], pixels[..., 8:16, 8:16])
    shown[..., 8:16, 8:16] = 0
    assert not shown.any()


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
