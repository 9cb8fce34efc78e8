"""The contrast of fixed logits with and without a cutoff, and calibrations of fixed probabilities."""

from __future__ import annotations

from tessera.lab.behaviour import Numbers, summary


def behaviour() -> Numbers:
    """Which tokens stay plausible, what the contrast makes of them, what calibration makes of answers."""
    import torch

    from tessera.parts.decoding import llava_align as align

    generator = torch.Generator().manual_seed(0)
    logits, blind = 2 * torch.randn(3, 11, generator=generator), torch.randn(3, 11, generator=generator)
    logits[0, 4] = -torch.inf
    found: dict[str, list[float] | str] = {}
    for alpha, beta in ((0.5, 0.1), (1.5, 0.4), (0.5, 0.0)):
        made = align.contrast(logits, blind, alpha, beta)
        found[f"plausible at {beta}"] = str(made.isfinite().long().tolist())
        found[f"contrast {alpha} at {beta}"] = summary(made.masked_fill(~made.isfinite(), -30.0), 6)
    raw = align.answer_probabilities(logits, [[0, 1], [2], [5, 6]])
    without = align.answer_probabilities(blind, [[0, 1], [2], [5, 6]])
    for kind in ("diagonal", "identity"):
        for band in ((0.0, 1.0), (0.0, 0.6)):
            found[f"calibrated, {kind}, {band}"] = summary(align.calibrate(raw, without, kind, band), 6)
    return found
