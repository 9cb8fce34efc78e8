"""POVID: preference pairs from injected hallucinations, in the answer's text and by a noised image.

Source: Zhou et al., "Aligning Modalities in Vision Large Language Models via Preference Fine-tuning", 2024, arXiv:2402.11411. The
right answer is preferred to two made ones. In the first, plausible mistakes are injected: things that often stand together with
those in the picture, wrong attributes, places, numbers. The second is what the model itself would say, token by token beside the
right answer, if the image were drowned in noise (forward diffusion). Both preferences are DPO against a frozen reference.

Deviations: a rule-based injector over the world's ground truth in place of GPT-4V (things of the same category that are absent,
things left out, places exchanged in lists; the question makers' distractors elsewhere). The paper's two stages are two weights:
`(1, 0)` is the first, `(0.5, 0.5)` the second. As in the released trainer, tokens under the noised image are scored with the
clean one, and where the noise changes no token, that pair has no gradient.

Shapes: B images, Q questions each, M labelled tokens; pixels [B, 3, S, S]; segments alternate between right and injected answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tessera.config import config
from tessera.data.dense import to_pixels
from tessera.data.packing import collate
from tessera.registry import part
from tessera.training.objective import Collate, Loss, Objective, encoded
from tessera.training.preference import Asked, Scored, dpo, pack_answers, score
from tessera.world.lists import LIST_PROMPTS
from tessera.world.questions.facts import Facts
from tessera.world.questions.lexicon import world_lexicon
from tessera.world.rng import Rng

if TYPE_CHECKING:
    from tessera.world import World
    from tessera.world.dataset import Sample

STEPS = 1000
"""Steps of the diffusion; noise grows with the step."""


def signal_and_noise(step: int) -> tuple[float, float]:
    """What is left of the image after `step` of the sigmoid schedule, and the noise's standard deviation; squares add up to 1.

    Betas rise from 1e-5 to 5e-3 along a sigmoid over [-6, 6].
    """
    betas = torch.sigmoid(torch.linspace(-6, 6, STEPS)) * (0.5e-2 - 1e-5) + 1e-5
    kept = float(torch.cumprod(1 - betas, 0)[step])
    return kept**0.5, (1 - kept) ** 0.5


def noised(pixels: Tensor, step: int, seeds: Sequence[int]) -> Tensor:
    """Pixels [B, 3, S, S] after `step` of the diffusion, each image with noise of its own seed."""
    signal, spread = signal_and_noise(step)
    noise = [torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)) for p, seed in zip(pixels, seeds, strict=True)]
    return signal * pixels + spread * torch.stack(noise)


def hallucinated(sample: Sample, rng: Rng) -> Asked | None:
    """A list of what is in the picture, and the same list with one mistake; None where there are no things to be wrong about.

    The mistake: an absent thing akin to one that is there is added or takes its place, or two things exchange their places.
    """
    facts = Facts(sample, world_lexicon())
    items = sorted(facts.frames[0].items, key=lambda item: (item.x, item.box))
    if not items or sample.frames[0].signs:
        return None
    names, places = [i.name for i in items], [i.place for i in items]
    wrong_names, wrong_places = list(names), list(places)
    at = rng.below(len(items))
    others = [k for k in range(len(items)) if places[k] != places[at] and names[k] != names[at]]
    kind = rng.choice(("added", "replaced", "exchanged") if others else ("added", "replaced"))
    if kind == "exchanged":
        other = rng.choice(others)
        wrong_places[at], wrong_places[other] = places[other], places[at]
    else:
        family = facts.pool.by_category.get(items[at].category, ())
        absent = facts.absent(rng, (family, facts.pool.ids), dict(facts.frames[0].counts))
        if absent is None:
            return None
        name = world_lexicon().concepts[absent].name
        if kind == "replaced":
            wrong_names[at] = name
        else:
            wrong_names.insert(at + 1, name)
            wrong_places.insert(at + 1, rng.choice(places))
    form = "places" if kind == "exchanged" or rng.chance(0.5) else "names"
    return LIST_PROMPTS[form], (_listed(form, names, places), _listed(form, wrong_names, wrong_places))


def _listed(form: str, names: Sequence[str], places: Sequence[str]) -> str:
    pairs = zip(names, places, strict=True)
    return ", ".join(f"{name} {place}" if form == "places" else name for name, place in pairs)


@part("povid", socket="preference", catalog=189)
class POVID(Objective):
    """DPO of right answers over injected mistakes, and over what a noised image would make the model say."""

    wants_reference = True

    @config
    class Config:
        """beta of the DPO loss; inject, noise: weights of the two preferences; step: of the diffusion, 0 to 999; questions: about
        an image, besides its list; swapped: share of pairs whose sides are exchanged, a control that prefers mistakes as
        often."""

        beta: float = 0.1
        inject: float = 0.5
        noise: float = 0.5
        step: int = 500
        questions: int = 3
        swapped: float = 0.0

        def validate_values(self) -> None:
            if self.beta <= 0 or min(self.inject, self.noise) < 0 or self.inject + self.noise <= 0:
                raise ValueError("beta is positive; inject and noise are not negative, and one of them is positive.")
            if not 0 <= self.step < STEPS:
                raise ValueError(f"step is one of the diffusion's steps, 0 to {STEPS - 1}, not {self.step}.")
            if self.questions < 0 or not 0 <= self.swapped <= 1:
                raise ValueError("questions is not negative, swapped a share from 0 to 1.")

    def collate(self, worlds: Sequence[World], processor: Any, batch_size: int) -> Collate:
        """Single pictures with right and wrong answers, and the same pictures noised."""

        def batch(indices: Sequence[int]) -> dict[str, Any]:
            packs, pictures, seeds = [], [], []
            for index in indices:
                world, step = worlds[index % len(worlds)], 0
                while not (asked := self._asked(sample := world.sample(index + step * 10_000_000, "scene"))):
                    step += 1
                packs.append(pack_answers(processor, 1, asked))
                pictures.append(np.asarray(sample.images()[0]))
                seeds.append(sample.rng("diffusion").below(2**31))
            pixels = to_pixels(pictures)
            found = collate(packs, pixels)
            if self.config.noise:
                found["noised_pixel_values"] = noised(pixels, self.config.step, seeds)
            return found

        return batch

    def _asked(self, sample: Sample) -> list[Asked]:
        rng = sample.rng("preferences")
        listed = hallucinated(sample, rng)
        asked = [] if listed is None else [listed]
        for question in rng.pick([q for q in sample.questions() if q.distractors], self.config.questions):
            asked.append((question.text, (question.answer, rng.choice(question.distractors))))
        swapped = self.config.swapped
        return [(q, (b, a) if swapped and rng.chance(swapped) else (a, b)) for q, (a, b) in asked]

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], reference: nn.Module | None) -> Loss:
        """See the module. A unit is a pair of answers."""
        clean = encoded(model, batch, reference)
        scored = score(model, clean)
        with torch.no_grad():
            frozen = score(reference, clean)
        right, wrong = _pairs(scored.sums() - frozen.sums())
        there = _pairs(scored.lengths())[0] > 0
        right, wrong = right[there], wrong[there]
        inject, noise, beta = self.config.inject, self.config.noise, self.config.beta
        total = inject * dpo(right - wrong, beta).sum()
        numbers = {
            "reward/right": beta * right.detach().sum(),
            "reward/injected": beta * wrong.detach().sum(),
            "preferred": (right > wrong).float().sum(),
        }
        if noise:
            blurred = dict(batch) | {"pixel_values": batch["noised_pixel_values"]}
            with torch.no_grad():
                blurred = encoded(model, blurred, reference)
                said, said_before = (score(m, blurred).logits.argmax(-1) for m in (model, reference))
            own = _pairs(scored.sums(said) - frozen.sums(said_before))[0][there]
            total = total + noise * dpo(right - own, beta).sum()
            numbers["reward/noised"] = beta * own.detach().sum()
            numbers["noise changes"] = _changed(scored, said)[there].float().sum()
        return Loss(total, there.sum().to(total.dtype), numbers)


def _pairs(x: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 2 Q] -> right answers [B, Q], injected ones [B, Q]."""
    return x[:, 0::2], x[:, 1::2]


def _changed(scored: Scored, said: Tensor) -> Tensor:
    """[B, Q] bool: whether any token of the right answer became another one."""
    rows, segments = scored.shape
    other = torch.zeros(rows * segments, device=said.device).index_add(0, scored.place, (said != scored.tokens).float())
    return _pairs(other.view(rows, segments))[0] > 0
