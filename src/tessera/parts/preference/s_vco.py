"""S-VCO: symmetric visual contrastive optimisation on images that differ in one thing.

Source: Wu, Sun, Wen, Haber, "Symmetrical Visual Contrastive Optimization: Aligning Vision-Language Models with Minimal
Contrastive Images", 2025, arXiv:2502.13928. Of two images that differ in a detail and their answers to the same question, each
image has to raise the likelihood of its own answer over no image at all, and to lower that of the other's below it. No answer
is bad by itself: both are right for one of the images, so nothing can be learned without looking.

Deviations: pairs are the world's before/after pictures (exactly one thing added, removed, moved, recoloured, grown or shrunk),
asked what the change decides, in place of filtered counterfactual photographs with rewritten captions. The contrast without
image reads only the beginning of the text.

Shapes: W pairs of images, three sequences each (first image, second image, none; for a control a fourth, a random image), Q
questions, segments alternate between the first image's answer and the second's: log-probabilities [W, 3, Q, 2].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tessera.config import config
from tessera.data.dense import to_pixels
from tessera.data.packing import collate
from tessera.registry import part
from tessera.training.objective import Collate, Loss, Objective, encoded
from tessera.training.preference import dpo, pack_answers, score
from tessera.world.contrasts import contrasts

if TYPE_CHECKING:
    from tessera.world import World

TERMS = ("matching", "contradicting", "matching_other", "contradicting_other")
"""Image against none, none against the other image, for the first image's answer; the same for the second's."""
MISMATCHED = 1_000
"""Lane of the pair that a random negative is of, which no search for a pair with contrasts comes to."""


def margins(logprobs: Tensor) -> Tensor:
    """[..., 3 (first image, second, none), 2 (first image's answer, second's)] -> [..., 4], in the order of `TERMS`.

    With a fourth image (none of the pair) the contradicting terms are about that one.
    """
    own, other, blind, *random = logprobs.unbind(-2)
    wrong_first, wrong_second = random * 2 or (other, own)
    return torch.stack(
        [
            own[..., 0] - blind[..., 0],
            blind[..., 0] - wrong_first[..., 0],
            other[..., 1] - blind[..., 1],
            blind[..., 1] - wrong_second[..., 1],
        ],
        -1,
    )


@part("s_vco", socket="preference", catalog=266)
class SVCO(Objective):
    """Four DPO terms per question about a pair of images."""

    wants_reference = True

    @config
    class Config:
        """betas: sharpness of the four terms in the order of `TERMS`, 0 leaves one out; questions: most contrasts asked about a
        pair; form: the symmetric loss, or plain DPO of an image's own answer over the other's with the first beta, which is
        what it is compared with; negatives: the image that contradicts an answer is the pair's other one, or, a control, one
        of another pair, which differs in everything."""

        betas: tuple[float, float, float, float] = (0.1, 0.1, 0.1, 0.1)
        questions: int = 4
        form: Literal["symmetric", "dpo"] = "symmetric"
        negatives: Literal["pair", "random"] = "pair"

        def validate_betas(self) -> None:
            if min(self.betas) < 0 or max(self.betas) == 0:
                raise ValueError(f"betas are zero or positive, and one of them is not zero; got {self.betas}.")
            if self.questions < 1:
                raise ValueError(f"questions must be at least 1, not {self.questions}.")
            if self.form == "dpo" and self.negatives == "random":
                raise ValueError("form='dpo' compares answers, not images: it has no use for negatives='random'.")

    def collate(self, worlds: Sequence[World], processor: Any, batch_size: int) -> Collate:
        """Pairs of the worlds with their contrasts; a sample without any is followed by the next one of its lane."""

        def batch(indices: Sequence[int]) -> dict[str, Any]:
            packs, pictures = [], list[Any]()
            random = self.config.negatives == "random"
            for index in indices:
                world, step = worlds[index % len(worlds)], 0
                while not (found := contrasts(sample := world.sample(_lane(index, step), "pair"))):
                    step += 1
                asked = sample.rng("contrasts").pick(found, self.config.questions)
                for images in (1, 1, 0, 1) if random else (1, 1, 0):
                    packs.append(pack_answers(processor, images, [(q, answers) for q, answers in asked]))
                shown = sample.images()
                if random:
                    shown += world.sample(_lane(index, MISMATCHED), "pair").images()[:1]
                pictures += map(np.asarray, shown)
            return collate(packs, to_pixels(pictures))

        return batch

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], reference: nn.Module | None) -> Loss:
        """See the module. A unit is a question about a pair."""
        batch = encoded(model, batch, reference)
        scored = score(model, batch)
        with torch.no_grad():
            before = score(reference, batch).sums()
        rows = 4 if self.config.negatives == "random" else 3
        policy, frozen = (_sorted(x, rows) for x in (scored.sums(), before))
        there = _sorted(scored.lengths(), rows)[:, :, 0, 0] > 0
        ratio = (policy - frozen)[there]
        if self.config.form == "dpo":
            own, other, _ = ratio.unbind(-2)
            margin = torch.stack([own[:, 0] - own[:, 1], other[:, 1] - other[:, 0]], -1)
            terms, numbers = [dpo(margin, self.config.betas[0])], {}
        else:
            margin = margins(ratio)
            terms = [dpo(margin[:, i], beta) for i, beta in enumerate(self.config.betas) if beta]
            numbers = {f"margin/{name}": margin[:, i].detach().sum() for i, name in enumerate(TERMS)}
        numbers["preferred"] = (margin.detach() > 0).float().mean(-1).sum()
        total = torch.stack([term.sum() for term in terms]).sum()
        return Loss(total, there.sum().to(margin.dtype), numbers)


def _lane(index: int, step: int) -> int:
    """The sample that stands in for number `index` at the `step`-th try: far apart, so that no two numbers share one."""
    return index + step * 10_000_000


def _sorted(x: Tensor, rows: int) -> Tensor:
    """[rows W, 2 Q] -> [W, Q, rows, 2] in the form that `margins` takes."""
    return x.view(len(x) // rows, rows, -1, 2).transpose(1, 2)
