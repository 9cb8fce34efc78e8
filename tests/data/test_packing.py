from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tessera.data.packing import Packed, collate, pack, unpack
from tessera.errors import UserError

ITEMS = st.lists(
    st.tuples(
        st.lists(st.integers(3, 50), min_size=1, max_size=6),
        st.lists(st.integers(3, 50), min_size=1, max_size=4),
        st.none(),
    ),
    max_size=8,
)


def test_layout_of_a_small_pack() -> None:
    packed = pack([1, 9, 9], [([4, 5], [6], None), ([4], [7, 8], 0.25)], 20, eos_id=2)
    assert packed.input_ids.tolist() == [1, 9, 9, 4, 5, 6, 2, 4, 7, 8, 2]
    assert packed.labels.tolist() == [-100] * 5 + [6, 2] + [-100] + [7, 8, 2]
    assert packed.segment_ids.tolist() == [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2]
    assert packed.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 6, 3, 4, 5, 6]
    np.testing.assert_allclose(packed.loss_weights, [0] * 5 + [2**-0.5] * 2 + [0] + [0.25] * 3)
    assert (packed.questions, packed.left_out) == (2, 0)


def test_without_eos_answers_are_taken_as_they_are() -> None:
    packed = pack([1], [([4], [6, 2], None)], 8)
    assert packed.input_ids.tolist() == [1, 4, 6, 2] and packed.labels.tolist() == [-100, -100, 6, 2]


def test_items_that_do_not_fit_are_left_out_and_smaller_ones_still_taken() -> None:
    packed = pack([1], [([4] * 3, [5], None), ([4] * 9, [5], None), ([4], [5], None)], 7)
    assert (packed.questions, packed.left_out, len(packed)) == (2, 1, 7)
    nothing = pack([1] * 7, [([4], [5], None)], 7)
    assert (nothing.questions, nothing.left_out) == (0, 1)


def test_bad_items_are_refused() -> None:
    with pytest.raises(UserError, match="3 more than the 2"):
        pack([1] * 5, [], 2)
    with pytest.raises(UserError, match="empty question"):
        pack([1], [([], [5], None)], 9)
    with pytest.raises(UserError, match="empty answer"):
        pack([1], [([5], [], None)], 9, eos_id=2)


@given(prefix=st.integers(1, 5), items=ITEMS, room=st.integers(5, 40))
def test_packing_keeps_every_question_whole(prefix: int, items: list[tuple[list[int], list[int], None]], room: int) -> None:
    packed = pack([1] * prefix, items, room, eos_id=2)
    assert len(packed) <= room and packed.questions + packed.left_out == len(items)
    singles = unpack(packed)
    wanted = [[*question, *answer, 2] for question, answer, _ in items]
    found = [single.input_ids[prefix:].tolist() for single in singles]
    iterator = iter(wanted)
    assert all(any(f == w for w in iterator) for f in found)
    for single in singles:
        assert single.position_ids.tolist() == list(range(len(single)))
    assert sum(float(s.loss_weights.sum()) for s in singles) == pytest.approx(float(packed.loss_weights.sum()), rel=1e-5)


def test_collate_pads_to_a_multiple_of_eight() -> None:
    packs = [
        pack([1, 9], [([4], [5], None)], 32, eos_id=2),
        pack([1, 9], [([4] * 8, [5], None)], 32, eos_id=2),
    ]
    batch = collate(packs, np.zeros((2, 3, 4, 4), dtype=np.float32), pad_id=7)
    assert {k: tuple(v.shape) for k, v in batch.items()} == {
        "input_ids": (2, 16),
        "labels": (2, 16),
        "segment_ids": (2, 16),
        "position_ids": (2, 16),
        "loss_weights": (2, 16),
        "pixel_values": (2, 3, 4, 4),
    }
    assert batch["input_ids"][0, 5:].eq(7).all() and batch["segment_ids"][0, 5:].eq(-1).all()
    assert batch["labels"][0, 5:].eq(-100).all() and batch["loss_weights"][0, 5:].eq(0).all()
    assert batch["input_ids"].dtype == torch.int64 and batch["loss_weights"].dtype == torch.float32
    assert collate(packs, length=24)["labels"].shape == (2, 24)
    with pytest.raises(UserError, match="more than the 8"):
        collate(packs, length=8)


def masked_loss(batch: dict[str, torch.Tensor], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weighted loss of a one-layer attention model; the rules of segments written out token by token."""
    generator = torch.Generator().manual_seed(seed)
    table, place, out = (torch.randn(64, 8, generator=generator, dtype=torch.float64) for _ in range(3))
    total = weights = torch.zeros((), dtype=torch.float64)
    for row in range(len(batch["input_ids"])):
        ids, segments = batch["input_ids"][row], batch["segment_ids"][row]
        hidden = table[ids] + place[batch["position_ids"][row]]
        for t in range(len(ids) - 1):
            if batch["labels"][row, t + 1] < 0:
                continue
            seen = [k for k in range(t + 1) if segments[k] >= 0 and segments[k] in (0, segments[t])]
            mixed = (torch.softmax(hidden[seen] @ hidden[t], 0)[:, None] * hidden[seen]).sum(0)
            loss = torch.nn.functional.cross_entropy(out @ mixed, batch["labels"][row, t + 1])
            weight = batch["loss_weights"][row, t + 1].double()
            total, weights = total + weight * loss, weights + weight
    return total, weights


def test_packed_loss_equals_unpacked_loss() -> None:
    items = [([4, 5], [6, 7], None), ([8], [9], None), ([4, 11, 12], [13], 0.5)]
    packs = [pack([1, 3, 3], items, 40, eos_id=2), pack([1, 3], items[1:], 40, eos_id=2)]
    singles: list[Packed] = [single for p in packs for single in unpack(p)]
    for mine, theirs in zip(masked_loss(collate(packs)), masked_loss(collate(singles)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)
