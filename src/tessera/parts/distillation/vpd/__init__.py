"""VPD: a model learns from the traces of programs over tools, and then needs neither programs nor tools.

Source: Hu et al., "Visual Program Distillation: Distilling Tools and Programmatic Reasoning into Vision-Language Models", 2023,
arXiv:2312.03052. For every question several programs are proposed and run; one whose result is the right answer is kept, and its
trace is rewritten as a rationale. The model is trained on the answer to the question and, asked to explain, on the rationale.
Examples without a right program keep their answer. At test time the model answers by itself in one pass.

Deviations: without a language model programs come from a grammar over the words of the world's questions, whose choices are
sampled at a temperature (`programs.Proposer` is what a language model would have to be); tools are oracles of the world's truth
that err (`tools.Tools`); the rationale is written by rule in the world's own words. Programs are lines of calls in a closed
language instead of Python, run by an interpreter of our own, so no sandbox can leak. "Explain." stands for the paper's longer
instruction.

Shapes: B pictures, S segments: answers and rationales, each of weight 1 whatever its length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from tessera.config import config
from tessera.data.dense import to_pixels
from tessera.data.packing import collate
from tessera.evaluation.scoring import normalise
from tessera.parts.distillation.vpd.programs import Grammar, Proposer, Step, run
from tessera.parts.distillation.vpd.rationale import rationale
from tessera.parts.distillation.vpd.tools import Failed, Tools
from tessera.registry import part
from tessera.training.objective import Collate, Loss, Objective
from tessera.training.preference import pack_answers, score
from tessera.world.rng import Rng

if TYPE_CHECKING:
    from tessera.world import World
    from tessera.world.dataset import Sample
    from tessera.world.scene import Question

EXPLAIN = "Explain."
"""What is added to a question that is to be answered with a rationale."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What programs gave for one question.

    program, trace  of the first one whose result is right, or of the first that ran if nothing is filtered; None without one
    answers         of all programs that ran to the end, in order
    """

    program: str | None
    trace: list[Step]
    answers: tuple[str, ...]

    @property
    def rationale(self) -> str:
        """The trace in words, "" without a program."""
        return rationale(self.trace) if self.program is not None else ""


def attempt(
    sample: Sample,
    question: Question,
    rng: Rng,
    *,
    proposer: Proposer,
    k: int = 5,
    temperature: float = 0.5,
    noise: float = 0.15,
    filtered: bool = True,
) -> Tried:
    """Proposes k programs for a question about one picture, runs each with tools of its own errors, and keeps one."""
    scene = sample.frames[0]
    shorter = min(scene.width, scene.height)
    aspect = (scene.width / shorter, scene.height / shorter)
    kept: tuple[str, list[Step]] | None = None
    answers = []
    for program in proposer.propose(question.text, k, temperature, rng):
        try:
            answer, trace = run(program, Tools(sample, noise, rng, aspect))
        except Failed:
            continue
        answers.append(answer)
        if kept is None and (not filtered or normalise(answer) == normalise(question.answer)):
            kept = program, trace
    return Tried(kept[0] if kept else None, kept[1] if kept else [], tuple(answers))


@part("vpd", socket="distillation", catalog=50)
class VPD(Objective):
    """Cross-entropy of answers and of rationales, each averaged over its tokens."""

    proposer: Proposer = Grammar()

    @config
    class Config:
        """programs: proposed for each question; temperature of the proposer; noise: chance that a tool errs in a call; questions:
        about a picture; filtered: whether only a program with the right answer gives a rationale (a control without it);
        rationales: whether there are any (answers alone are the baseline)."""

        programs: int = 5
        temperature: float = 0.5
        noise: float = 0.15
        questions: int = 3
        filtered: bool = True
        rationales: bool = True

        def validate_values(self) -> None:
            if self.programs < 1 or self.questions < 1 or self.temperature < 0 or not 0 <= self.noise <= 1:
                raise ValueError("programs and questions are at least 1, temperature is not negative, noise is a share.")

    def collate(self, worlds: Sequence[World], processor: Any, batch_size: int) -> Collate:
        """Pictures with questions, each followed by its rationale where there is one."""
        c = self.config

        def batch(indices: Sequence[int]) -> dict[str, Any]:
            packs, pictures, explains = [], [], []
            for index in indices:
                world, step = worlds[index % len(worlds)], 0
                while not (questions := (sample := world.sample(index + step * 10_000_000, "scene")).questions()):
                    step += 1
                rng = sample.rng("programs")
                asked = []
                for question in rng.pick(questions, c.questions):
                    asked.append((question.text, (question.answer,)))
                    tried = self.attempt(sample, question, rng) if c.rationales else None
                    if tried is not None and tried.program is not None:
                        asked.append((f"{question.text} {EXPLAIN}", (tried.rationale,)))
                packs.append(pack_answers(processor, 1, asked))
                pictures.append(np.asarray(sample.images()[0]))
                explains.append([text.endswith(f" {EXPLAIN}") for text, _ in asked])
            most = max(map(len, explains))
            found = collate(packs, to_pixels(pictures))
            found["explains"] = torch.tensor([row + [False] * (most - len(row)) for row in explains])
            return found

        return batch

    def attempt(self, sample: Sample, question: Question, rng: Rng) -> Tried:
        """As configured; see `attempt`."""
        c = self.config
        return attempt(
            sample,
            question,
            rng,
            proposer=self.proposer,
            k=c.programs,
            temperature=c.temperature,
            noise=c.noise,
            filtered=c.filtered,
        )

    def loss(self, model: nn.Module, batch: Mapping[str, Tensor], reference: nn.Module | None) -> Loss:
        """See the module. A unit is an answered question."""
        explains = batch["explains"]
        scored = score(model, batch)
        lengths = scored.lengths()
        there = lengths > 0
        each = -scored.sums() / lengths.clamp(min=1)
        answers = (there & ~explains).sum().to(each.dtype)
        said, why = each[there & ~explains].sum(), each[there & explains].sum()
        share = (there & explains).sum().to(each.dtype)
        return Loss(said + why, answers, {"answer": said.detach(), "rationale": why.detach(), "explained": share})
