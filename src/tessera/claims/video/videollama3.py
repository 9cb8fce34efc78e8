"""VideoLLaMA 3: tokens that have not changed since the previous frame are dropped."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tessera.lab.experiment import Checked, Exact, Experiment, Plug, beats, worse
from tessera.lab.givens.pictures import StillBackground
from tessera.lab.protocols.answering import Answering

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.lab.lab import Lab

FRAMES = 4
"""Of a clip; the reference model has learned from clips of three and four frames."""
SHARE = 0.37
"""Of the tokens that the control keeps: more than the pruner does, as the precondition measures."""


def is_its_rule(lab: Lab) -> Checked:
    """Random videos whose tokens partly repeat, against token-by-token sums, and against the video processor of transformers'
    VideoLLaMA3 where torchvision, which that needs, is installed."""
    import torch

    from tessera.parts.video.videollama3 import changed

    random, official = torch.Generator().manual_seed(0), _official()
    naive, theirs = True, True
    for frames, rows, columns, size in ((2, 3, 4, 12), (5, 4, 6, 27), (8, 7, 7, 48)):
        clip = torch.randn(frames, rows * columns, size, generator=random)
        for t in range(1, frames):
            same = torch.rand(rows * columns, generator=random) < (1.0 if t % 4 == 3 else 0.6)
            clip[t, same] = clip[t - 1, same] + torch.randn(int(same.sum()), 1, generator=random) * 5e-4
        found = changed(clip, 0.1)
        naive &= torch.equal(found, _naive(clip, 0.1))
        if official is not None:
            # Their pixels are [patches, values]; a merge size of 1 makes every patch a token.
            grid = torch.tensor([[frames, rows, columns]])
            theirs &= torch.equal(found.flatten(), official(None, clip.flatten(0, 1), grid, torch.tensor([1])))
    checks = {"naive reading": naive, **({} if official is None else {"transformers' own": theirs})}
    return Checked(checks=checks, shape="3 videos of 2 to 8 frames and 12 to 49 tokens, float32")


def _naive(clip: Tensor, threshold: float) -> Tensor:
    import torch

    stay = torch.zeros(clip.shape[:2], dtype=torch.bool)
    for t, frame in enumerate(clip):
        for token, pixels in enumerate(frame):
            stay[t, token] = t == 0 or float((pixels - clip[t - 1, token]).abs().mean() * 255) > threshold
        if not bool(stay[t].any()):
            stay[t, 0] = True
    return stay


def _official() -> Any:
    """The mask of transformers' video processor, None without torchvision."""
    try:
        from transformers.models.video_llama_3.video_processing_video_llama_3 import VideoLlama3VideoProcessor
    except ImportError:
        return None
    return VideoLlama3VideoProcessor._get_compression_mask


CLAIMS = [
    Exact(
        id="is_its_rule",
        promise="The mask equals that of a naive implementation and that of transformers, bit for bit.",
        paper="section 2.2",
        run=is_its_rule,
    ),
    Experiment(
        id="beats_random",
        promise="Accuracy on questions about clips is higher when unchanged tokens are dropped than when as many random tokens "
        "are.",
        paper="section 2.2",
        protocol=Answering(types=("order",), world={"kinds": {"clip": 1.0}, "frames": (FRAMES, FRAMES)}),
        treatment=Plug("videollama3", threshold=0.1),
        baseline=Plug("videollama3", threshold=-1.0),
        control=Plug("random", keep=(SHARE,), repeats=3),
        primary=beats("control"),
        valid_if=(worse("control", than="baseline"),),
        secondary=(worse("treatment", than="baseline"),),
        given=(StillBackground(model="nano", frames=FRAMES, most=SHARE),),
        note="The control keeps the same share of every frame; the pruner keeps the first frame whole.",
    ),
]
