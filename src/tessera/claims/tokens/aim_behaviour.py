"""PageRank of fixed logits; merging in one round and in several."""

from __future__ import annotations

from tessera.lab.behaviour import Numbers, summary


def behaviour() -> Numbers:
    """At three temperatures, with a row of padding."""
    import torch

    from tessera.parts.tokens import aim

    generator = torch.Generator().manual_seed(0)
    logits, real = torch.randn(2, 3, 7, 7, generator=generator) / 4, torch.arange(7) < torch.tensor([[7], [5]])
    found: dict[str, list[float] | str] = {}
    logits = logits.masked_fill(~real[:, None, None], torch.finfo(torch.float32).min)
    for temperature, steps in ((0.1, 5), (0.4, 2), (1.0, 3)):
        found[f"rank at {temperature}"] = summary(aim.page_rank(logits, real, temperature, steps), 6)
    tokens = torch.randn(2, 9, 4, generator=generator)
    for goal in (7, 3, 1):
        merged, places = aim.merged_to(tokens, goal)
        found[f"merged to {goal}"] = summary(merged, 6)
        found[f"places of {goal}"] = str(places.tolist())
    for start, stop in ((None, None), (2, 6)):
        found[f"falling from {start}"] = list(aim.falling(12, start, stop).values())
    return found
