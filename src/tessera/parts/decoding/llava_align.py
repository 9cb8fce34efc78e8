"""LLaVA-Align: what the language model predicts without the image is taken away from its answers.

Source: Zhang et al., "Debiasing Multimodal Large Language Models" (first "Debiasing Large Visual Language Models"), 2024,
arXiv:2403.05262. The same prompt is read without its image, or with <unk> in the image's place. *Visual debias decoding*
(VDD) contrasts the two in every step of a generation; *post-hoc calibration* divides the probabilities of a closed question's
answers by those of the image-free prompt, so that without an image all answers score alike.

Deviations: with alpha 0 nothing is done at all (the released code would still cut implausible tokens off). The contrast comes
behind the processors that `generate` itself has (a forbidden token stays forbidden) and in front of temperature, top-k and
top-p. <unk> stands once for each run of image tokens, as in the released code, where an image is one placeholder at that
point; tokens that frame an image stay. Calibration by W = diag(1 / p) is computed as exp(log q - log p), which is exactly
uniform for q = p where the released code adds 1e-4 to p; with W = 1, b = -p a softmax normalises (the paper's equation) where
the released code divides by a sum that may be zero.

Shapes: B rows, V vocabulary, C answers: logits [B, V], probabilities [B, C].
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from tessera.config import config
from tessera.errors import UserError
from tessera.generation.branch import Branch
from tessera.hosts.part import HostPart
from tessera.registry import part

if TYPE_CHECKING:
    from tessera.hosts.contract import Host

FLOOR = 1e-30
"""Least probability of an answer: below it, a logarithm would be infinite."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Probabilities of closed answers, each [B, C], rows sum to 1: as the model gave them, without the image, calibrated."""

    raw: Tensor
    blind: Tensor
    calibrated: Tensor


@part("llava_align", socket="decoding", catalog=224)
class LlavaAlign(HostPart):
    """Visual debias decoding while plugged in; `closed_answers` calibrates."""

    claims = ("logits",)

    @config
    class Config:
        """alpha strength of the contrast; beta share of the best token's probability below which a token is implausible;
        blind what the image is replaced with: nothing, <unk>, or the mean of both; unknown_id the tokenizer's id of <unk>,
        needed for those; prior "own" or "other", a control: what is taken away is what the batch's next prompt would be answered
        without its image (a prompt alone keeps its own, which makes the control rather too good); calibration by the diagonal W =
        diag(1/p) or the identity W = 1, b = -p; band (least, most): only rows whose best answer has a probability within are
        calibrated."""

        alpha: float = 0.5
        beta: float = 0.1
        blind: Literal["none", "unk", "both"] = "none"
        unknown_id: int | None = None
        prior: Literal["own", "other"] = "own"
        calibration: Literal["diagonal", "identity"] = "diagonal"
        band: tuple[float, float] = (0.0, 1.0)

        def validate_values(self) -> None:
            if self.alpha < 0:
                raise ValueError(f"alpha must not be negative, it is {self.alpha}.")
            if not 0 <= self.beta <= 1:
                raise ValueError(f"beta is a share between 0 and 1, not {self.beta}.")
            if self.blind != "none" and self.unknown_id is None:
                raise ValueError(f"blind={self.blind!r} needs unknown_id, the tokenizer's unk_token_id.")
            if not self.band[0] <= self.band[1]:
                raise ValueError(f"band is (least, most) with least <= most, not {self.band}.")

    @classmethod
    def identity(cls) -> dict[str, Any]:
        """See `HostPart`."""
        return {"alpha": 0.0}

    def logits_processors(self, host: Host, inputs: Mapping[str, Any]) -> list[Any]:
        """The contrast with the prompt's own image-free streams, or the next prompt's."""
        if self.config.alpha == 0:
            return []
        branches = self.branches(host, inputs)
        turned = len(inputs["input_ids"]) if self.config.prior == "other" else 0
        return [ContrastProcessor(branches, self.config.alpha, self.config.beta, turned)]

    def branches(self, host: Host, inputs: Mapping[str, Any]) -> list[Branch]:
        """The image-free streams of a prompt. Raises `UserError` for a prompt that came as embeddings."""
        if not isinstance(inputs.get("input_ids"), Tensor):
            raise UserError("llava_align takes the image out of a prompt's input_ids; it cannot do that to inputs_embeds.")
        family, model, blind = host.architecture.family, host.model, self.config.blind
        variants = []
        if blind in ("none", "both"):
            variants.append(family.no_image(model, inputs))
        if blind in ("unk", "both"):
            assert self.config.unknown_id is not None
            marked = with_unknown(inputs, host.architecture.image_token_ids, self.config.unknown_id)
            variants.append(family.no_image(model, marked))
        return [Branch(model, variant, host) for variant in variants]

    def closed_answers(self, host: Host, inputs: Mapping[str, Any], answers: Sequence[Sequence[int]]) -> Calibrated:
        """Calibrates the first token of the answer: `answers` holds, for each of C answers, the token ids that mean it."""
        raw = answer_probabilities(Branch(host.model, inputs, host).begin(), answers)
        variants = [answer_probabilities(branch.begin(), answers) for branch in self.branches(host, inputs)]
        blind = torch.stack(variants).mean(0)
        return Calibrated(raw, blind, calibrate(raw, blind, self.config.calibration, self.config.band))


class ContrastProcessor:
    """A logits processor: (1 + alpha) l(image) - alpha l(blind) over the tokens that are plausible with the image."""

    def __init__(self, branches: Sequence[Branch], alpha: float, beta: float, turned: int = 0) -> None:
        """turned: the number of prompts if each is contrasted with the next one's blind stream, 0 for its own."""
        self.branches, self.alpha, self.beta, self.turned = branches, alpha, beta, turned

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids [R, T], scores [R, V] -> [R, V], float32, -inf at implausible tokens."""
        blind = torch.stack([branch.logits(input_ids).to(scores.device, torch.float32) for branch in self.branches]).mean(0)
        if self.turned:
            blind = blind.roll(-(len(blind) // self.turned), 0)  # beams of a prompt stand together
        return contrast(scores.float(), blind, self.alpha, self.beta)


def contrast(logits: Tensor, blind: Tensor, alpha: float, beta: float) -> Tensor:
    """Logits and blind [..., V] -> (1 + alpha) logits - alpha blind, -inf where logits < log(beta) + their maximum."""
    cutoff = logits.amax(-1, keepdim=True) + (math.log(beta) if beta > 0 else -math.inf)
    implausible = (logits < cutoff) | logits.isneginf()
    return ((1 + alpha) * logits - alpha * blind).masked_fill(implausible, -torch.inf)


def answer_probabilities(logits: Tensor, answers: Sequence[Sequence[int]]) -> Tensor:
    """Logits [B, V] -> [B, C]: the probability of each answer's tokens together, among all answers."""
    shares = logits.float().log_softmax(-1)
    scores = torch.stack([shares[:, list(ids)].logsumexp(-1) for ids in answers], -1)
    return scores.softmax(-1)


def calibrate(
    probabilities: Tensor,
    blind: Tensor,
    mode: Literal["diagonal", "identity"] = "diagonal",
    band: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Probabilities and blind [..., C] -> calibrated probabilities [..., C].

    diagonal: proportional to probabilities / blind. identity: softmax(probabilities - blind). Rows whose greatest probability
    lies outside `band` stay as they are.
    """
    if mode == "diagonal":
        scores = probabilities.clamp(min=FLOOR).log() - blind.clamp(min=FLOOR).log()
    else:
        scores = probabilities - blind
    best = probabilities.amax(-1, keepdim=True)
    return torch.where((best >= band[0]) & (best <= band[1]), scores.softmax(-1), probabilities)


def with_unknown(inputs: Mapping[str, Any], image_token_ids: Sequence[int], unknown: int) -> dict[str, Any]:
    """A prompt's inputs [B, S] with `unknown`, a text token, in place of the first of each run of image tokens."""
    ids: Tensor = inputs["input_ids"]
    images = torch.isin(ids, torch.tensor(image_token_ids, device=ids.device))
    first = images & ~torch.nn.functional.pad(images, (1, 0))[:, :-1]
    changed = dict(inputs)
    for name, value in inputs.items():
        if name in ("token_type_ids", "mm_token_type_ids") and isinstance(value, Tensor):
            changed[name] = value.masked_fill(first, 0)
    changed["input_ids"] = ids.masked_fill(first, unknown)
    return changed
