"""Measurements that claims of several parts have in common.

    trial = dropping(lab, "fopru", {"keep": 0.25}, control={"keep": (0.25,)})
    return trial.finding({"95 % of the accuracy is kept": trial.kept >= 0.95})

Every number is a mean over the lab's seeds, which choose the scenes that are asked about and what the control leaves to chance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tessera.lab.claim import Finding, Numbers
from tessera.lab.lab import Lab, mean, spread

if TYPE_CHECKING:
    from tessera.bench.sides import Ratio
    from tessera.bench.tokens import Shape
    from tessera.evaluation.result import Result
    from tessera.world.scene import Question

SEEING = ("existence", "count", "relation", "position", "size", "attribute", "category", "at")
"""Question types about single scenes that need the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """Accuracies per seed: of the bare model, with the part, and with the control in its place."""

    seeds: tuple[int, ...]
    whole: Sequence[float]
    part: Sequence[float]
    control: Sequence[float]
    shape: str

    @property
    def kept(self) -> float:
        """Accuracy with the part over that of the bare model; 0 for a model that gets nothing right."""
        return mean(self.part) / (mean(self.whole) or 1.0)

    @property
    def left(self) -> float:
        """Accuracy with the control over that of the bare model."""
        return mean(self.control) / (mean(self.whole) or 1.0)

    @property
    def lost(self) -> float:
        """Points that the part costs."""
        return 100 * (mean(self.whole) - mean(self.part))

    @property
    def ahead(self) -> float:
        """Points by which the part is ahead of the control."""
        return 100 * (mean(self.part) - mean(self.control))

    def finding(self, checks: Mapping[str, bool], note: str = "", more: Numbers | None = None) -> Finding:
        """The trial's numbers under `checks`; `more` are further measured ones."""
        return Finding(
            checks=checks,
            measured={"accuracy": mean(self.part), "share of the accuracy": self.kept, **(more or {})},
            baseline={"accuracy": mean(self.whole)},
            control={"accuracy": mean(self.control), "share of the accuracy": self.left},
            spread={
                "accuracy": spread(self.part),
                "baseline accuracy": spread(self.whole),
                "control accuracy": spread(self.control),
            },
            seeds=self.seeds,
            shape=self.shape,
            note=note,
        )


def dropping(
    lab: Lab,
    name: str,
    options: Mapping[str, Any],
    *,
    control: Mapping[str, Any],
    other: str = "random",
    types: Sequence[str] = SEEING,
    n: int = 400,
    world: Mapping[str, Any] | None = None,
    model: Any = "nano",
) -> Trial:
    """The part `name` on a reference model (or a model with its processor) against the bare model, and against the part `other`
    with the options `control` (a seed is added for random dropping)."""
    host, processor = lab.reference(model) if isinstance(model, str) else model

    def ask(seed: int, plug: Mapping[str, Mapping[str, Any]] | None = None) -> float:
        return lab.evaluate(host, processor, types=types, n=n, seed=seed, world=world, plug=plug).accuracy

    chance = [{**control, "seed": seed} if other == "random" else dict(control) for seed in lab.seeds]
    return Trial(
        seeds=lab.seeds,
        whole=[ask(seed) for seed in lab.seeds],
        part=[ask(seed, {name: options}) for seed in lab.seeds],
        control=[ask(seed, {other: settings}) for seed, settings in zip(lab.seeds, chance, strict=True)],
        shape=f"{n} questions of {len(types)} types, {len(lab.seeds)} times, "
        f"{getattr(host, 'tokens_per_image', '?')} visual tokens an image",
    )


def asked(result: Result) -> list[tuple[Question, bool]]:
    """Every question of an evaluation with whether it was answered right, type by type."""
    from tessera.config import build
    from tessera.evaluation.items import EvaluationConfig, draw

    questions = [q for item in draw(build(EvaluationConfig, result.config)) for q in item.questions]
    found = []
    for name, of_type in result.types.items():
        own = [q for q in questions if q.type == name]
        found += list(zip(own, [c == "1" for c in of_type.outcomes if c != " "], strict=True))
    return found


def yes_rate(result: Result) -> float:
    """Share of yes among the answers to yes-or-no questions; an answer that is neither counts as the wrong one."""
    closed = [(q.answer == "yes") == right for q, right in asked(result) if q.form == "yesno"]
    return sum(closed) / max(1, len(closed))


@dataclass(frozen=True, slots=True, kw_only=True)
class Saving:
    """What a part saves in a prefill: tokens entering each decoder layer, and the bare host's FLOPs and seconds over its own."""

    tokens: list[int]
    before: int
    flops: float
    time: Ratio
    shape: str

    def finding(self, checks: Mapping[str, bool], note: str = "") -> Finding:
        """The saving's numbers under `checks`."""
        layers = len(self.tokens)
        return Finding(
            checks=checks,
            measured={
                "tokens a layer": sum(self.tokens) / layers,
                "FLOPs, times fewer": round(self.flops, 3),
                "prefill, times faster": self.time.median,
                "prefill, times faster at least": self.time.low,
            },
            baseline={"tokens a layer": float(self.before)},
            shape=self.shape,
            note=note,
        )


def prefill(
    lab: Lab,
    name: str,
    options: Mapping[str, Any],
    shape: Shape | None = None,
    rounds: int = 5,
) -> Saving:
    """The part on a LLaVA with random weights (576 visual tokens, 12 layers of width 512), which costs what it costs whatever it
    says: pixels to the first logits, bare and plugged in turns."""
    import torch

    from tessera.bench.tokens import Shape, host, inputs

    shape = shape or Shape()
    model, prompt = host(shape), inputs(shape)

    def forward(of: Any) -> Callable[[], Any]:
        return lambda: of(**prompt, use_cache=True, logits_to_keep=1)

    with ExitStack() as stack, torch.inference_mode():
        plugged = plugged_copy(stack, model, name, options)
        bare, thin = forward(model), forward(plugged.model)
        thin()
        tokens = [stage.index.shape[1] for stage in plugged.sequence.stages]
        flops = lab.flops(bare) / lab.flops(thin)
        taken = lab.timing(bare, thin, rounds)
    words = f"{shape.layers} layers of width {shape.width}, {shape.patches**2} visual tokens and {shape.text_tokens} of text"
    return Saving(
        tokens=tokens,
        before=prompt["input_ids"].shape[1],
        flops=flops,
        time=taken,
        shape=f"{words}, float32, {lab.shape()}",
    )


def plugged_copy(stack: ExitStack, model: Any, name: str, options: Mapping[str, Any]) -> Any:
    """A host with one part on a copy of the model that shares its weights, until the stack is closed."""
    from tessera.hosts.plug import plug

    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return stack.enter_context(plug(copy.deepcopy(model, shared), name, **options))
