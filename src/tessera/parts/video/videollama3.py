"""VideoLLaMA 3 drops what has not changed since the frame before.

Source: Zhang et al., "VideoLLaMA 3: Frontier Multimodal Foundation Models for Image and Video Understanding", 2025,
arXiv:2501.13106, the differential frame pruner (DiffFP). For every visual token of a frame the mean absolute difference of its
pixels to those of the frame before, times 255, is compared with a threshold; tokens below it do not reach the language model.
The first frame stays whole, and of every frame at least one token stays.

Deviations: this is the frame compressor alone, for any host that shows frames as images of one prompt; no frame timestamps,
no encoder with variable resolution. Tokens keep their positions, because models that were not trained with the pruner know no
others; the paper counts anew, `positions="reindex"`. Any number of prompts at once (the published code: one).

Shapes: F frames, n visual tokens of a frame, P pixel values under a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tessera.config import config
from tessera.hosts.clips import ClipPart
from tessera.hosts.part import Positions
from tessera.lab.claim import Finding, claim
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.lab.lab import Lab


def changed(clip: Tensor, threshold: float, least: int = 1) -> Tensor:
    """Pixels [F, n, P] -> [F, n] bool: tokens whose pixels differ from the frame before by more than `threshold` (mean absolute
    difference times 255), the whole first frame, and the first `least` tokens of frames where fewer differ."""
    difference = (clip[1:] - clip[:-1]).abs().mean(-1) * 255
    stay = torch.cat([clip.new_ones(1, clip.shape[1], dtype=torch.bool), difference > threshold])
    still = stay.sum(1) < least
    stay[still, :least] = True
    return stay


@part("videollama3", socket="video", catalog=113)
class DiffFP(ClipPart):
    """Drops tokens of frames that look as they did one frame before."""

    @config
    class Config:
        """threshold: mean absolute difference of the model's pixel values, times 255, above which a token stays; below 0 all do.
        least: tokens that stay of every frame.
        positions: of the tokens that stay."""

        threshold: float = 0.1
        least: int = 1
        positions: Positions = "keep"

        def validate_least(self) -> None:
            if self.least < 0:
                raise ValueError(f"least is a number of tokens, not {self.least}.")

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """Every token goes on."""
        return {"threshold": -1.0}

    @classmethod
    def example(cls, layers: int) -> dict[str, Any]:
        """About half of the second of two frames of noise."""
        return {"threshold": 255 * 2 / torch.pi**0.5}

    @property
    def positions(self) -> Positions:
        """As configured."""
        return self.config.positions

    def idle(self) -> bool:
        """A threshold below zero."""
        return self.config.threshold < 0

    def stays(self, clip: Tensor) -> Tensor:
        """See `changed`."""
        return changed(clip, self.config.threshold, self.config.least)


# What the paper promises


@claim("the mask is that of a naive reading and of transformers' own, bit for bit", kind="exact", paper="section 2.2")
def is_its_rule(lab: Lab) -> Finding:
    """Random videos whose tokens partly repeat, against token-by-token sums, and against the video processor of transformers'
    VideoLLaMA3 where torchvision, which that needs, is installed."""
    checks: dict[str, bool] = {}
    random = torch.Generator().manual_seed(0)
    naive, theirs = True, True
    for frames, rows, columns, size in ((2, 3, 4, 12), (5, 4, 6, 27), (8, 7, 7, 48)):
        clip = torch.randn(frames, rows * columns, size, generator=random)
        for t in range(1, frames):
            same = torch.rand(rows * columns, generator=random) < (1.0 if t % 4 == 3 else 0.6)
            clip[t, same] = clip[t - 1, same] + torch.randn(int(same.sum()), 1, generator=random) * 5e-4
        found = changed(clip, 0.1)
        naive &= torch.equal(found, _naive(clip, 0.1))
        official = _official()
        if official is not None:
            # Their pixels are [patches, values]; a merge size of 1 makes every patch a token.
            grid = torch.tensor([[frames, rows, columns]])
            theirs &= torch.equal(found.flatten(), official(None, clip.flatten(0, 1), grid, torch.tensor([1])))
    checks["naive reading"] = naive
    if _official() is not None:
        checks["transformers' own"] = theirs
    return Finding(checks=checks, shape="3 videos of 2 to 8 frames and 12 to 49 tokens, float32")


def _naive(clip: Tensor, threshold: float) -> Tensor:
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


@claim("set to keep everything it changes no bit of a host", kind="exact")
def changes_nothing_when_idle(lab: Lab) -> Finding:
    """Identity, cache and undoing on tiny models, with two images in every prompt."""
    return lab.hosted("videollama3", ("llava", "qwen2_5_vl", "video_llama_3"))


FRAMES, QUESTIONS = 8, 200
"""Frames of the clips, and questions about them per seed."""


@claim("most of a clip's tokens go, and what happened is still known", kind="effect", paper="section 2.2, tables 6 and 7")
def keeps_events(lab: Lab) -> Finding:
    """Questions about what moved, appeared, vanished and swapped places, about clips over a still background, against the whole
    clip; control: as many tokens dropped by chance from every frame. Seeds choose the clips."""
    from tessera.lab.lab import mean, spread

    model, processor = lab.reference("nano")
    world = {"kinds": {"clip": 1.0}, "frames": (FRAMES, FRAMES)}
    side = int(model.tokens_per_image**0.5)
    kept = _kept(lab, FRAMES, side)
    ways: dict[str, Any] = {"whole": None, "pruned": {"videollama3": {}}, "random": {"random": {"keep": (kept,)}}}
    results = {
        way: [
            lab.evaluate(model, processor, types=("order",), n=QUESTIONS, seed=seed, world=world, plug=plug).accuracy
            for seed in lab.seeds
        ]
        for way, plug in ways.items()
    }
    accuracy = {way: mean(found) for way, found in results.items()}
    blind = lab.evaluate(model, processor, types=("order",), n=QUESTIONS, world=world, blind=True).accuracy
    return Finding(
        checks={
            "70 % of the tokens go": kept <= 0.30,
            "at most 1 point lost": accuracy["pruned"] >= accuracy["whole"] - 0.01,
            "5 points above random dropping": accuracy["pruned"] >= accuracy["random"] + 0.05,
        },
        measured={"accuracy": accuracy["pruned"], "tokens kept": kept},
        baseline={"whole clip": accuracy["whole"], "blind": blind},
        control={"random dropping": accuracy["random"]},
        seeds=lab.seeds,
        spread={way: spread(found) for way, found in results.items()},
        shape=f"clips of {FRAMES} frames of {side} x {side} tokens, {QUESTIONS} questions a seed",
        note="The reference model has learned from clips of 3 and 4 frames; on longer ones it has less to lose.",
    )


def _kept(lab: Lab, frames: int, side: int, samples: int = 60) -> float:
    """Share of the tokens of the world's clips that stay, as a model of side x side tokens sees them."""
    import numpy as np

    from tessera.hosts.clips import squares
    from tessera.hosts.part import Block, Layout
    from tessera.training.dense import to_pixels

    world, layout = lab.world(), Layout(side * side, (Block(0, side, side),))
    shares = []
    for index in range(samples):
        images = world.sample(index, "clip", frames).images()
        clip = torch.stack([squares(image, layout) for image in to_pixels([np.asarray(image) for image in images])])
        shares.append(float(changed(clip, 0.1).float().mean()))
    return sum(shares) / len(shares)
