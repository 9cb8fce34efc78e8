"""V2PE: visual tokens advance the position by less than one, so that long visual inputs stay within trained positions.

Source: Ge et al., "V2PE: Improving Multimodal Long-Context Capability of Vision-Language Models with Variable Visual Position
Encoding", 2024, arXiv:2412.09616. Text advances the rotary position by 1, a visual token by delta = stride / 256; the first
text token behind an image stands at the next whole number. Training draws a stride per image, inference fixes one.

Deviations: an image is a run of visual tokens (the released code looks for its own start and end tokens and 256 tokens per
tile), so that tokens between tiles count as text; two images without text between them are two. Padding keeps the positions
that the host gives it.

Shapes: B rows, S tokens: visual, real, image_of [B, S], positions [B, S], float32 unless every stride is 256.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tessera.config import config
from tessera.hosts.part import HostPart
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.hosts.contract import Host
    from tessera.hosts.sequence import Sequence as HostSequence

WHOLE = 256
"""The stride at which a visual token advances the position by 1."""
ORDER, SHIFT = "v2pe order", "v2pe shift"
"""Notes of a sequence: corrections [B, S] of its positions, and [B, 1] of all later ones."""


@part("v2pe", socket="couplings", catalog=345)
class V2PE(HostPart):
    """Float positions for visual tokens; one-dimensional rotary hosts only."""

    needs = ("rope",)
    claims = ("positions",)

    @config
    class Config:
        """strides in 256ths of a position: one is used for every image; of several each image draws one (training)."""

        strides: tuple[int, ...] = (64,)

        def validate_strides(self) -> None:
            wrong = [s for s in self.strides if not 1 <= s <= WHOLE]
            if wrong or not self.strides:
                raise ValueError(f"strides are one or more whole numbers from 1 to {WHOLE}, not {self.strides}.")

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """See `HostPart`."""
        return {"strides": (WHOLE,)}

    def edit_positions(self, host: Host, sequence: HostSequence, position_ids: Tensor) -> Tensor:
        """See `HostPart`."""
        if set(self.config.strides) == {WHOLE} or not sequence.has_visual:
            return position_ids
        notes = sequence.notes
        if SHIFT not in notes:
            steps = self.steps(sequence.image_of)
            notes[ORDER], notes[SHIFT] = corrections(sequence.visual, sequence.real, sequence.image_of, steps)
        whole = position_ids.shape[-1] == sequence.length and host.prefill
        correction = notes[ORDER] if whole else notes[SHIFT]
        return (position_ids + correction.to(position_ids.device)).float()

    def steps(self, image_of: Tensor) -> Tensor:
        """image_of [B, S] -> delta of each token's image, float64 [B, S]."""
        strides = torch.tensor(self.config.strides, dtype=torch.float64, device=image_of.device) / WHOLE
        if len(strides) == 1:
            return strides.expand(image_of.shape)
        images = int(image_of.max()) + 1
        drawn = torch.randint(len(strides), (image_of.shape[0], images)).to(image_of.device)
        return strides[drawn.gather(1, image_of.clamp(min=0))]


def corrections(visual: Tensor, real: Tensor, image_of: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """What is to be added to default positions: visual, real [B, S] bool, image_of [B, S], steps [B, S] -> [B, S], [B, 1]
    float64.

    The second is for all tokens behind the prompt. A run of n visual tokens that advance by delta stands at p + delta, p + 2
    delta, ... behind text at p, and is followed by text at p + ceil(n delta) + 1.
    """
    visual = visual & real
    before = torch.nn.functional.pad(visual, (1, 0))[:, :-1]
    other = torch.nn.functional.pad(image_of, (1, 0), value=-1)[:, :-1] != image_of
    first = visual & (~before | other)
    run = first.cumsum(1).where(visual, 0)  # numbered from 1; 0 is text
    steps = steps.to(torch.float64)
    runs = int(run.max()) + 1
    zeros = steps.new_zeros(visual.shape[0], runs)
    counts = zeros.scatter_add(1, run, visual.to(steps.dtype))
    deltas = zeros.scatter(1, run, steps)  # one step per run: every token of a run writes the same
    saved = (counts - (counts * deltas).ceil()).index_fill(1, torch.zeros(1, dtype=torch.int64, device=run.device), 0)
    so_far = first.cumsum(1)  # runs begun up to a token
    finished = torch.where(visual, so_far - 1, so_far)
    correction = -saved.cumsum(1).gather(1, finished)
    place = visual.cumsum(1) - torch.where(first, visual.cumsum(1) - 1, 0).cummax(1).values  # 1, 2, ... within the run
    correction = correction + torch.where(visual, (steps - 1) * place, 0)
    return correction.where(real, 0), -saved.sum(1, keepdim=True)


def positions(visual: Tensor, real: Tensor, image_of: Tensor, steps: Tensor) -> Tensor:
    """V2PE's positions [B, S] float64 of a full prompt, 1 at padding as transformers has it there."""
    default = (real.cumsum(1) - 1).masked_fill(~real, 1)
    return default + corrections(visual, real, image_of, steps)[0]
