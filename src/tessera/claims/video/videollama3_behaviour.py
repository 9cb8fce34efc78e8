"""Which tokens of a clip stay whose pixels change in part."""

from __future__ import annotations

from tessera.lab.behaviour import Numbers


def behaviour() -> Numbers:
    """Five frames, one of them still."""
    import torch

    from tessera.parts.video.videollama3 import changed

    generator = torch.Generator().manual_seed(0)
    clip = torch.randn(5, 8, 6, generator=generator)
    for frame in range(1, 5):
        same = torch.rand(8, generator=generator) < (1.0 if frame == 2 else 0.6)
        clip[frame, same] = clip[frame - 1, same] + 5e-4
    settings = ((0.1, 1), (0.2, 3), (0.1, 0), (-1.0, 1))
    return {
        f"stay above {threshold}, {least}": str(changed(clip, threshold, least).long().tolist()) for threshold, least in settings
    }
