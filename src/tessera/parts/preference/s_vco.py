"""S-VCO: symmetric visual contrastive optimisation on images that differ in one thing.

Source: Wu, Sun, Wen, Haber, "Symmetrical Visual Contrastive Optimization: Aligning Vision-Language Models with Minimal
Contrastive Images", 2025, arXiv:2502.13928. Of two images that differ in a detail and their answers to the same question, each
image has to raise the likelihood of its own answer over no image at all, and to lower that of the other's below it. No answer
is bad by itself: both are right for one of the images, so nothing can be learned without looking.

Deviations: pairs are the world's before/after pictures (exactly one thing added, removed, moved, recoloured, grown or shrunk),
asked what the change decides, in place of filtered counterfactual photographs with rewritten captions. The contrast without
image reads the bare beginning of the text.

Shapes: W pairs of images, three sequences each (first image, second image, none), Q questions, segments alternate between the
first image's answer and the second's: log-probabilities [W, 3, Q, 2].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tessera.config import config
from tessera.data.packing import collate
from tessera.lab.claim import Finding, claim
from tessera.registry import part
from tessera.training.dense import to_pixels
from tessera.training.objective import Collate, Loss, Objective, encoded
from tessera.training.preference import dpo, pack_answers, score
from tessera.world.contrasts import contrasts

if TYPE_CHECKING:
    from tessera.lab.lab import Lab
    from tessera.world import World

TERMS = ("matching", "contradicting", "matching_other", "contradicting_other")
"""Image against none, none against the other image, for the first image's answer; the same for the second's."""


def margins(logprobs: Tensor) -> Tensor:
    """[..., 3 (first image, second, none), 2 (first image's answer, second's)] -> [..., 4], in the order of `TERMS`."""
    own, other, blind = logprobs.unbind(-2)
    return torch.stack(
        [
            own[..., 0] - blind[..., 0],
            blind[..., 0] - other[..., 0],
            other[..., 1] - blind[..., 1],
            blind[..., 1] - own[..., 1],
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
        what it is compared with; mismatched: whether answers go with the wrong image of their pair, a control that teaches not
        to look."""

        betas: tuple[float, float, float, float] = (0.1, 0.1, 0.1, 0.1)
        questions: int = 4
        form: Literal["symmetric", "dpo"] = "symmetric"
        mismatched: bool = False

        def validate_betas(self) -> None:
            if min(self.betas) < 0 or max(self.betas) == 0:
                raise ValueError(f"betas are zero or positive, and one of them is not zero; got {self.betas}.")
            if self.questions < 1:
                raise ValueError(f"questions must be at least 1, not {self.questions}.")

    def collate(self, worlds: Sequence[World], processor: Any, batch_size: int) -> Collate:
        """Pairs of the worlds with their contrasts; a sample without any is followed by the next one of its lane."""

        def batch(indices: Sequence[int]) -> dict[str, Any]:
            packs, pictures = [], []
            for index in indices:
                world, step = worlds[index % len(worlds)], 0
                while not (found := contrasts(sample := world.sample(_lane(index, step), "pair"))):
                    step += 1
                asked = sample.rng("contrasts").pick(found, self.config.questions)
                for images in (1, 1, 0):
                    packs.append(pack_answers(processor, images, [(q, answers) for q, answers in asked]))
                images_ = [np.asarray(image) for image in sample.images()]
                pictures += images_[::-1] if self.config.mismatched else images_
            return collate(packs, to_pixels(pictures))

        return batch

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], reference: nn.Module | None) -> Loss:
        """See the module. A unit is a question about a pair."""
        batch = encoded(model, batch, reference)
        scored = score(model, batch)
        with torch.no_grad():
            before = score(reference, batch).sums()
        policy, frozen = (_sorted(x) for x in (scored.sums(), before))
        there = _sorted(scored.lengths())[:, :, 0, 0] > 0
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


def _sorted(x: Tensor) -> Tensor:
    """[3 W, 2 Q] -> [W, Q, 3, 2] in the form that `margins` takes."""
    return x.view(len(x) // 3, 3, -1, 2).transpose(1, 2)


# Claims


def _literal(logits: Any, batch: Mapping[str, Tensor], betas: Sequence[float]) -> Tensor:
    """The loss written out: `logits(model, tokens, image or None)` of every sequence by itself, model 0 policy, 1 reference."""
    from tessera.lab.instruments.speaker import rows_of

    plain = dict(batch)
    total, units = torch.zeros(()), 0
    for pair in range(len(batch["input_ids"]) // 3):
        images = (batch["pixel_values"][2 * pair], batch["pixel_values"][2 * pair + 1], None)
        sequences = [rows_of(plain, 3 * pair + i) for i in range(3)]

        def likelihood(image: int, answer: int, images: Any = images, sequences: Any = sequences) -> Tensor:
            tokens, places, labels = sequences[image][answer]
            policy, frozen = (logits(m, tokens, images[image]).log_softmax(-1) for m in (0, 1))
            return sum((policy[p - 1, y] - frozen[p - 1, y] for p, y in zip(places, labels, strict=True)), torch.zeros(()))

        for question in range(len(sequences[0]) // 2):
            first, second = 2 * question, 2 * question + 1
            ratios = [
                likelihood(0, first) - likelihood(2, first),
                likelihood(2, first) - likelihood(1, first),
                likelihood(1, second) - likelihood(2, second),
                likelihood(2, second) - likelihood(0, second),
            ]
            for beta, ratio in zip(betas, ratios, strict=True):
                total = total + torch.log1p(torch.exp(-beta * ratio))
            units += 1
    return total / units


@claim("the loss and its gradients equal the formula written out", kind="exact", paper="equations 4 to 7")
def equals_the_formula(lab: Lab) -> Finding:
    """Packed sequences of random likelihoods against every sequence by itself."""
    from tessera.lab.instruments.speaker import speakers

    policy, reference, processor = speakers()
    part_ = SVCO(SVCO.Config(betas=(0.1, 0.2, 0.3, 0.4), questions=2))
    batch = part_.collate([lab.world(split="train", width=64, height=64)], processor, 2)(range(2))

    def logits(model: int, tokens: list[int], image: Tensor | None) -> Tensor:
        one = torch.tensor([tokens])
        shown = None if image is None else image[None]
        found: Tensor = (policy, reference)[model](one, shown).logits[0]
        return found if model == 0 else found.detach()

    ours = part_.loss(policy, batch, reference)
    loss = ours.loss_sum / ours.loss_weight
    naive = _literal(logits, batch, part_.config.betas)
    gradients = [torch.autograd.grad(x, list(policy.parameters())) for x in (loss, naive)]
    apart = max(float((a - b).abs().max()) for a, b in zip(*gradients, strict=True))
    off = abs(float(loss.detach() - naive.detach()))
    return Finding(
        checks={"loss to 1e-5": off <= 1e-5, "gradients to 1e-5": apart <= 1e-5},
        measured={"loss differs by": off, "gradients differ by": apart},
        shape="2 pairs of images, 2 questions each, random likelihoods, float32",
    )


@claim("without any learning every term is log 2", kind="exact")
def begins_neutral(lab: Lab) -> Finding:
    """A policy that equals its reference."""
    from tessera.lab.instruments.speaker import speakers

    policy, _, processor = speakers()
    part_ = SVCO(SVCO.Config())
    batch = part_.collate([lab.world(split="train", width=64, height=64)], processor, 1)(range(1))
    loss = part_.loss(policy, batch, policy)
    value = float(loss.loss_sum.detach() / loss.loss_weight)
    return Finding(checks={"4 log 2": bool(abs(value - 4 * np.log(2)) <= 1e-6)}, measured={"loss": value})


@claim("both pictures of a pair are told apart more often than after DPO on the same pairs", kind="effect", paper="table 1")
def tells_pairs_apart(lab: Lab) -> Finding:
    """Contrasts of unseen pairs: both pictures answered rightly; hallucinated is the answer that the other picture has."""
    from tessera.lab.instruments.further import learned, means
    from tessera.lab.lab import spread

    world = {"kinds": {"pair": 1.0}}

    def numbers(model: Any, processor: Any, seed: int) -> dict[str, float]:
        seen = lab.evaluate(model, processor, types=("existence", "position", "relation", "count"), n=240, seed=seed)
        return {**_told_apart(lab, model, processor, seed), "accuracy on single pictures": seen.accuracy}

    def trained(seed: int, **options: Any) -> dict[str, float]:
        return numbers(*learned(lab, objective={"kind": "s_vco", **options}, world=world, seed=seed, batch=4), seed)

    part_ = [trained(s) for s in lab.seeds]
    plain = [trained(s, form="dpo") for s in lab.seeds]
    wrong = [trained(s, mismatched=True) for s in lab.seeds]
    start = [numbers(*lab.reference("nano"), s) for s in lab.seeds]
    ours, dpo_, control, before = (means(x) for x in (part_, plain, wrong, start))
    fewer = 1 - ours["hallucinated"] / max(before["hallucinated"], 1e-9)
    return Finding(
        checks={
            "hallucinated answers fall by 30 % or more": fewer >= 0.3,
            "fewer hallucinated answers than after DPO": ours["hallucinated"] < dpo_["hallucinated"],
            "at most 2 points lost on single pictures": ours["accuracy on single pictures"]
            >= before["accuracy on single pictures"] - 0.02,
            "answers of the wrong picture do not help": control["hallucinated"] >= before["hallucinated"],
        },
        measured={**ours, "fewer hallucinated": fewer, **{f"DPO: {k}": v for k, v in dpo_.items()}},
        baseline=before,
        control=control,
        seeds=lab.seeds,
        spread={name: spread([x[name] for x in part_]) for name in ours},
        shape="40 steps of 4 pairs from nano, 120 unseen pairs, 240 questions",
        note="The reference model has no strong prior of language to break, which is what the paper's gains come from.",
    )


def _told_apart(lab: Lab, model: Any, processor: Any, seed: int, n: int = 120) -> dict[str, float]:
    from tessera.evaluation.answering import generator
    from tessera.evaluation.scoring import normalise

    world = lab.world(kinds={"pair": 1.0})
    found: list[tuple[Any, str, tuple[str, str]]] = []
    index = 1_000_000 * seed
    while len(found) < n:
        sample = world.sample(index, "pair")
        index += 1
        short = [c for c in contrasts(sample) if len(c[1][0].split()) <= 3 and "box" not in c[0]]
        if short:
            question, answers = sample.rng("asked").choice(short)
            found.append((sample.images(), question, answers))
    asked = generator(model, processor)
    right = other = both = 0
    for start in range(0, n, 20):
        chunk = found[start : start + 20]
        rows = [([image], [question]) for images, question, _ in chunk for image in images]
        said = [normalise(answers[0].text) for answers in asked.answer_batch(rows, 8)]
        for i, (_, _, answers) in enumerate(chunk):
            true = [normalise(a) for a in answers]
            pair = said[2 * i : 2 * i + 2]
            right += sum(a == b for a, b in zip(pair, true, strict=True))
            other += sum(a == b for a, b in zip(pair, true[::-1], strict=True))
            both += pair == true
    return {"both right": both / n, "right": right / (2 * n), "hallucinated": other / (2 * n)}
