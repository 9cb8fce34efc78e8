"""A finished model answers questions of the world with parts plugged into it: token reduction, decoding, attention, positions.

Nothing is trained, so the units are images. Every arm is answered by the same engine; the baseline is the part set to do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tessera.errors import TesseraError
from tessera.lab.experiment import Arm, Plug, Vary
from tessera.lab.outcomes import Outcomes, averaged
from tessera.lab.protocols.base import Protocol

if TYPE_CHECKING:
    from tessera.evaluation.items import Item
    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit

SEEING = ("existence", "count", "relation", "position", "size", "attribute", "category", "at")
"""Question types about single scenes that need the picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answering(Protocol):
    """model: a reference model; types: of the questions, in equal shares; world: options of `WorldConfig`, for all arms; seed: of
    the first look's scenes.

    Arms: `Plug`, or `Vary(name, image="none" | "mismatched", ...)` for the model asked without the image or with another
    sample's, and `parts={"name": {...}}` to plug several at once.
    Metrics: accuracy; accuracy/<type>; yes rate (share of yes among yes-or-no answers); false yes (yes where no is right).
    """

    name: ClassVar[str] = "answering"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "image"
    looks: ClassVar[tuple[int, ...]] = (400, 1000, 2000)
    arms: ClassVar[tuple[type[Arm], ...]] = (Plug, Vary)

    model: str = "nano"
    types: tuple[str, ...] = SEEING
    world: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    def models(self) -> tuple[str, ...]:
        """The reference model."""
        return (self.model,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """`count` new questions of the look's own scenes."""
        from tessera.evaluation.items import EvaluationConfig, draw
        from tessera.world import WorldConfig

        model, processor = lab.reference(self.model)
        side = getattr(model, "image_size", None)
        options = {"split": "test", **({"width": side, "height": side} if isinstance(side, int) else {}), **self.world}
        config = EvaluationConfig(world=WorldConfig(**options), types=tuple(self.types), n=count, seed=self.seed + look)
        return answered(model, processor, draw(config), arm)

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """A tiny random model asked eight questions, with half of its tokens, with all, without the image, with another's."""
        from tessera.evaluation.items import EvaluationConfig, draw
        from tessera.lab.protocols.tiny import tiny_model
        from tessera.world import WorldConfig

        model, processor = tiny_model()
        items = draw(
            EvaluationConfig(world=WorldConfig(split="test", width=64, height=64), types=("existence", "position"), n=16)
        )
        arms = (
            Plug("random", keep=(0.5,), repeats=2),
            Plug("random", keep=(1.0,)),
            Vary("no image", image="none"),
            Vary("mismatched image", image="mismatched"),
        )
        found: dict[str, list[float] | str] = {}
        for arm in arms:
            outcomes = answered(model, processor, items, arm, max_new_tokens=3)
            for metric, (totals, counts) in sorted(outcomes.metrics.items()):
                found[f"{arm.label}: {metric}"] = [*totals.tolist(), *counts.tolist()]
            found[f"{arm.label}: said"] = " ".join(text for texts in said(model, processor, items, arm, 3)[0] for text in texts)
        return found


def answered(model: Any, processor: Any, items: list[Item], arm: Arm, max_new_tokens: int = 24) -> Outcomes:
    """Outcomes per image of an arm's answers, averaged over the repeats of a `Plug`."""
    return averaged([_outcomes(items, texts) for texts in said(model, processor, items, arm, max_new_tokens)])


def said(model: Any, processor: Any, items: list[Item], arm: Arm, max_new_tokens: int = 24) -> list[list[list[str]]]:
    """What the model says to every question of every item, once for each repeat of the arm.

    Whatever is plugged, the same engine answers: the images are read with each question.
    """
    from tessera.evaluation.harness import ask
    from tessera.generation.host_generate import HostGenerator
    from tessera.hosts.plug import attach, part_named

    plugs, image, repeats = _arm(arm)
    found = []
    for repeat in range(repeats):
        with ExitStack() as stack:
            parts = [
                part_named(name, {**options, "seed": repeat} if repeats > 1 else dict(options)) for name, options in plugs.items()
            ]
            stack.enter_context(attach(model).plug(*parts))
            answers: Any = HostGenerator(model, processor)
            if image == "mismatched":
                answers = _Mismatched(answers)
            found.append(
                ask(model, processor, items, blind=image == "none", answers=answers, max_new_tokens=max_new_tokens, batch_size=32)
            )
    return found


def _arm(arm: Arm) -> tuple[dict[str, Mapping[str, Any]], str, int]:
    """(parts with options, own, none or mismatched image, repeats)."""
    if isinstance(arm, Plug):
        return {arm.part: arm.options}, "own", arm.repeats
    assert isinstance(arm, Vary)
    settings = dict(arm.settings)
    image, plugs = settings.pop("image", "own"), settings.pop("parts", {})
    if settings or image not in ("own", "none", "mismatched"):
        raise TesseraError(f"answering knows image='own', 'none' or 'mismatched' and parts={{...}}, not {dict(arm.settings)}.")
    return dict(plugs), image, 1


class _Mismatched:
    """Answers every row about the images of the next row with as many images."""

    def __init__(self, answers: Any) -> None:
        self.answers = answers

    def answer_batch(self, rows: Any, max_new_tokens: int) -> Any:
        """See `evaluation.answering.Generates`."""
        return self.answers.answer_batch(
            [(rows[(i + 1) % len(rows)][0], asked) for i, (_, asked) in enumerate(rows)], max_new_tokens
        )


def _outcomes(items: list[Item], texts: list[list[str]]) -> Outcomes:
    import numpy as np

    from tessera.evaluation.scoring import score

    kinds = sorted({q.type for item in items for q in item.questions})
    names = ["accuracy", *(f"accuracy/{kind}" for kind in kinds), "yes rate", "false yes"]
    totals, counts = ({name: np.zeros(len(items)) for name in names} for _ in range(2))
    for place, (item, found) in enumerate(zip(items, texts, strict=True)):
        for question, text in zip(item.questions, found, strict=True):
            right = float(score(question, text).right)
            for name in ("accuracy", f"accuracy/{question.type}"):
                totals[name][place] += right
                counts[name][place] += 1
            if question.form == "yesno":
                yes = float(text.strip().lower().startswith("yes"))
                totals["yes rate"][place] += yes
                counts["yes rate"][place] += 1
                if question.answer == "no":
                    totals["false yes"][place] += yes
                    counts["false yes"][place] += 1
    kept = [name for name in names if counts[name].sum()]
    return Outcomes({name: (totals[name], counts[name]) for name in kept})
