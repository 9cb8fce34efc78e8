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
from tessera.data.packing import collate
from tessera.evaluation.scoring import normalise
from tessera.lab.claim import Finding, claim
from tessera.parts.distillation.vpd.programs import Grammar, Proposer, Step, run
from tessera.parts.distillation.vpd.rationale import rationale
from tessera.parts.distillation.vpd.tools import Failed, Tools
from tessera.registry import part
from tessera.training.dense import to_pixels
from tessera.training.objective import Collate, Loss, Objective
from tessera.training.preference import pack_answers, score
from tessera.world.rng import Rng

if TYPE_CHECKING:
    from tessera.lab.lab import Lab
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


# Claims

REASONING = ("count", "total", "number", "relation", "distance", "size", "multihop")
"""Question types that take a step or two."""


def _asked(lab: Lab, n: int, seed: int = 0, split: str = "test") -> list[tuple[Sample, Question]]:
    """Questions that the grammar understands, about scenes of a seed's own."""
    from tessera.parts.distillation.vpd.programs import understood

    world = lab.world(split=split, kinds={"scene": 1.0}, things=(1, 5))
    found: list[tuple[Sample, Question]] = []
    index = 1_000_000 * seed
    while len(found) < n:
        sample = world[index]
        found += [(sample, q) for q in sample.questions(REASONING) if understood(q.text)][:4]
        index += 1
    return found[:n]


@claim("with exact tools the program that the words mean gives the right answer, for every question", kind="exact")
def means_what_it_says(lab: Lab) -> Finding:
    """All question types that programs are known for, at temperature 0 and without noise; and what is no program is refused."""
    asked = _asked(lab, 120)
    right = [
        attempt(s, q, Rng("exact", i), proposer=Grammar(), k=1, temperature=0.0, noise=0.0).program is not None
        for i, (s, q) in enumerate(asked)
    ]
    refused = []
    for text in (
        "import os",
        "answer = open('x')",
        "answer = count(find('dog'))",
        "answer = find.__class__('dog')",
        "while True: pass",
    ):
        try:
            run(text, Tools(asked[0][0], 0.0, Rng("none")))
            refused.append(False)
        except Failed:
            refused.append(True)
    return Finding(
        checks={"every answer is right": all(right), "what is no program is refused": all(refused)},
        measured={"right": sum(right) / len(right)},
        shape=f"{len(asked)} questions",
    )


@claim("several programs and a check find a right one far more often than one", kind="effect", paper="section 3.1")
def several_find_the_right_one(lab: Lab) -> Finding:
    """Tools that err in 15 % of their calls; a rationale agrees with the picture if it says what an errorless run says."""
    from tessera.lab.lab import mean, spread

    grammar = Grammar()

    def shares(seed: int) -> dict[str, float]:
        found = dict.fromkeys(("one", "five", "five by lot", "kept rationales agree", "first rationales agree"), 0.0)
        asked = _asked(lab, 300, seed, "train")
        kept = first = 0
        for sample, question in asked:

            def tries(k: int, temperature: float = 0.5, filtered: bool = True, s: Any = sample, q: Any = question) -> Tried:
                rng = Rng("tries", seed, s.index, q.text, k, int(filtered))
                return attempt(s, q, rng, proposer=grammar, k=k, temperature=temperature, filtered=filtered)

            program = grammar.meant(question.text)
            assert program is not None
            truth = rationale(run(program, Tools(sample, 0.0, Rng("exact")))[1])
            five, unchecked = tries(5), tries(1, filtered=False)
            found["one"] += tries(1).program is not None
            found["five"] += five.program is not None
            found["five by lot"] += tries(5, temperature=1e6).program is not None
            kept += five.program is not None
            first += unchecked.program is not None
            found["kept rationales agree"] += five.rationale == truth
            found["first rationales agree"] += unchecked.rationale == truth
        n = len(asked)
        by = {"kept rationales agree": max(1, kept), "first rationales agree": max(1, first)}
        return {name: value / by.get(name, n) for name, value in found.items()}

    runs = [shares(seed) for seed in lab.seeds]
    found = {name: mean([r[name] for r in runs]) for name in runs[0]}
    return Finding(
        checks={
            "five find one 20 points more often than one": found["five"] - found["one"] >= 0.2,
            "choices by lot find fewer": found["five by lot"] < found["five"],
            "90 % of the kept rationales agree with the picture": found["kept rationales agree"] >= 0.9,
            "without the check fewer do": found["first rationales agree"] < found["kept rationales agree"],
        },
        measured={k: found[k] for k in ("five", "kept rationales agree")},
        baseline={"one": found["one"]},
        control={k: found[k] for k in ("five by lot", "first rationales agree")},
        seeds=lab.seeds,
        spread={name: spread([r[name] for r in runs]) for name in found},
        shape="300 questions, noise 0.15, temperature 0.5",
        note="A wrong program can be right by luck where answers are few (yes and no, small numbers); its rationale then is not.",
    )


@claim("the model outdoes answer-only training and the tools it learned from", kind="effect", paper="tables 1 and 4")
def distilled_model_reasons(lab: Lab) -> Finding:
    """Questions that take a step or two, against the same training on answers alone, and on rationales that nobody checked.

    The learning rate, the same for all of them, was raised once, from 2e-4, after a first run that gave 75 to 79 % with every
    training and in which the rationales' loss was still about 2.
    """
    from tessera.lab.instruments.further import learned, means
    from tessera.lab.lab import mean, spread

    def accuracy(seed: int, **options: Any) -> dict[str, float]:
        model, processor = learned(lab, objective={"kind": "vpd", **options}, seed=seed, steps=60, rate=1e-3)
        found = {"accuracy": lab.evaluate(model, processor, types=REASONING, n=350, seed=seed, world=_SCENES).accuracy}
        return found | ({} if options else {"rationales agree": _agree(lab, model, processor, seed)})

    def pipeline(seed: int) -> float:
        asked = _asked(lab, 350, seed)
        tried = [attempt(s, q, Rng("pipeline", i), proposer=Grammar(), k=1, temperature=0.5) for i, (s, q) in enumerate(asked)]
        return sum(t.program is not None for t in tried) / len(tried)

    runs = [accuracy(s) for s in lab.seeds]
    ours, answers, unchecked = means(runs), *(means([accuracy(s, **o) for s in lab.seeds]) for o in _OTHERS)
    start = mean(
        [lab.evaluate(*lab.reference("nano"), types=REASONING, n=350, seed=s, world=_SCENES).accuracy for s in lab.seeds]
    )
    tools = mean([pipeline(s) for s in lab.seeds])
    return Finding(
        checks={
            "5 points above training on answers alone": ours["accuracy"] - answers["accuracy"] >= 0.05,
            "above the tools": ours["accuracy"] > tools,
            "90 % of its rationales agree with the picture": ours["rationales agree"] >= 0.9,
            "rationales that nobody checked help less": unchecked["accuracy"] < ours["accuracy"],
        },
        measured=ours,
        baseline={"answers alone": answers["accuracy"], "before": start, "one program over the tools": tools},
        control={"unchecked rationales": unchecked["accuracy"]},
        seeds=lab.seeds,
        spread={name: spread([r[name] for r in runs]) for name in ours},
        shape="60 steps of 8 images from nano, 350 questions",
        note="Answers are words that a small model reads off in one step; a rationale helps where the step is too long for it.",
    )


_SCENES = {"kinds": {"scene": 1.0}, "things": (1, 5)}
_OTHERS: tuple[dict[str, Any], ...] = ({"rationales": False}, {"filtered": False})


def _agree(lab: Lab, model: Any, processor: Any, seed: int, n: int = 100) -> float:
    """The share of the model's rationales that say what an errorless run of the meant program says."""
    from tessera.evaluation.answering import generator

    asked, grammar, right = _asked(lab, n, seed), Grammar(), 0
    speaker = generator(model, processor)
    for start in range(0, n, 20):
        chunk = asked[start : start + 20]
        rows = [(sample.images(), [f"{question.text} {EXPLAIN}"]) for sample, question in chunk]
        for (sample, question), said in zip(chunk, speaker.answer_batch(rows, 60), strict=True):
            program = grammar.meant(question.text)
            assert program is not None
            right += normalise(said[0].text) == normalise(rationale(run(program, Tools(sample, 0.0, Rng("exact")))[1]))
    return right / n
