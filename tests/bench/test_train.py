"""The training benchmark compares like with like."""

from __future__ import annotations

import torch

from tessera.bench import train


def test_both_sides_have_the_same_loss_on_the_same_questions() -> None:
    model, stock, processor = train.models("eager")
    packed, single = train.batches(processor, model, 4, 2)
    assert len(packed["input_ids"]) == 2 and len(single["input_ids"]) == 4
    assert int((single["labels"] >= 0).sum()) == int((packed["labels"] >= 0).sum())
    assert train._difference(model, stock, packed, single) < 1e-4
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in stock.parameters())


def test_a_measurement_is_complete() -> None:
    found = train.measure(questions=2, per_image=2, steps=1, rounds=1, compiled=False)
    assert found.compiled_seconds > 0
    assert found.ours_seconds > 0 and found.plain_seconds > 0
    assert found.ratio.low <= found.ratio.median <= found.ratio.high
    assert found.loss_difference < 1e-4
    assert torch.get_num_threads() == found.threads
    assert found.gflop_per_step > 0 and found.matmul_gflops > 0
    assert found.share_reached is (found.matmul_share.median >= train.SHARE)


def test_the_operations_of_a_step_are_counted_with_its_backward_pass() -> None:
    model, _, processor = train.models("eager")
    packed, _ = train.batches(processor, model, 4, 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = train._gflop(model, packed, "fp32")
    matrices = sum(p.numel() for p in model.model.language_model.parameters() if p.ndim == 2)
    tokens = packed["input_ids"].numel()
    # Two for the forward pass and four for the backward pass, of every weight and token; embeddings multiply labels alone.
    assert found > 6 * 0.5 * matrices * tokens / 1e9
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert all(p.grad is None for p in model.parameters())
