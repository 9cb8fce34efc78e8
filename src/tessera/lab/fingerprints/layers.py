"""Golden runs of the shared layers and of the mechanisms that choose tokens, on small fixed inputs."""

from __future__ import annotations

from typing import Any

from tessera.lab.behaviour import Numbers, summary


def layers() -> Numbers:
    """Selections, masks, positions, routing, quantisation, resampling."""
    import torch

    from tessera.nn import moe, quantise, reduction, segments, tokens

    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Any:
        return torch.randn(*shape, generator=generator)

    found: dict[str, list[float] | str] = {}

    def exact(name: str, value: Any) -> None:
        found[name] = str(value.long().tolist())

    score, group = drawn(2, 12), torch.randint(-1, 3, (2, 12), generator=generator)
    group[1, 9:] = -1
    score[0, 3] = score[0, 7]  # of equal ones the earlier
    exact("keep_top", reduction.keep_top(score, group >= 0, torch.tensor([3, 2])))
    exact("top_by_group", reduction.top_by_group(score, group, torch.tensor([[2, 1, 0], [1, 1, 2]])))
    exact("sizes", reduction.group_sizes(group, 3))
    exact("share", reduction.share(torch.tensor([7, 10, 3]), 0.3))
    index = torch.tensor([[0, 1, 3, 4, 7, 9], [0, 2, 3, 5, 6, 0]])
    present = torch.tensor([[True] * 6, [True] * 5 + [False]])
    exact("keep_share", reduction.keep_share(score.gather(1, index), group, index, present, 0.5))
    exact("hashed", reduction.hashed(torch.arange(6), 3))
    exact("dispersed", reduction.dispersed(torch.arange(16) // 4, torch.arange(16) % 4).argsort())
    ids = torch.tensor([[0, 0, 1, 1, 2, 2], [-1, 0, 0, 1, 1, -1]])
    exact("mask", segments.segment_mask(ids, 6))
    exact("mask of the last", segments.segment_mask(ids, 2, torch.tensor([[1] * 6, [0, 1, 1, 1, 1, 0]])))
    exact("positions", segments.segment_positions(ids))
    found["additive"] = summary(segments.additive(segments.segment_mask(ids, 6), torch.float32).clamp(min=-9))
    found["grid"] = summary(tokens.grid_positions(3, 4))
    for target in ((2, 3), (8, 5)):
        found[f"resampled to {target}"] = summary(tokens.resample(drawn(2, 24, 3), (4, 6), target))
    for k, capacity in ((1, None), (2, None), (2, 0.5), (1, 1.0)):
        logits, real = drawn(10, 4), torch.arange(10) % 5 != 4
        routing = moe.route(logits, k, capacity, real)
        found[f"routed by {k}, {capacity}"] = [*summary(routing.weights, 6), float(routing.balance())]
        exact(f"experts of {k}, {capacity}", routing.experts)
    x = drawn(4, 300)
    for bits in (4, 8):
        scale, zero = quantise.fitted(x, bits)
        found[f"quantised in {bits}"] = summary(quantise.quantised(x, scale[:, None], zero[:, None], bits))
    return found
