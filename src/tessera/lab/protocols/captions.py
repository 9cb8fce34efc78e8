"""A finished model lists everything that it sees, with parts plugged into it: how much of what it names is not there (CHAIR).

Nothing is trained, so the units are images. Every arm is answered by the same engine; the baseline is the part set to do nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tessera.lab.experiment import Arm, Plug, Vary
from tessera.lab.outcomes import Outcomes, averaged
from tessera.lab.protocols.base import Protocol

if TYPE_CHECKING:
    from tessera.evaluation.items import Item
    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit

SCENES: Mapping[str, Any] = {"kinds": {"scene": 1.0}, "things": (2, 6)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Captions(Protocol):
    """model: a reference model; world: options of `WorldConfig`, for all arms; seed: of the first look's scenes.

    Arms: as of `Answering`.
    Metrics: hallucinated (share of the things named that are not there: CHAIR_i, Rohrbach et al., 2018, arXiv:1809.02156);
    sentences (share of the lists with at least one such thing: CHAIR_s); recall (share of the things there that are named).
    """

    name: ClassVar[str] = "captions"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "image"
    looks: ClassVar[tuple[int, ...]] = (200, 500, 1000)
    arms: ClassVar[tuple[type[Arm], ...]] = (Plug, Vary)

    model: str = "nano"
    world: Mapping[str, Any] = field(default_factory=lambda: dict(SCENES))
    seed: int = 0

    def models(self) -> tuple[str, ...]:
        """The reference model."""
        return (self.model,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """`count` new scenes, numbers first .. first + count - 1 of the seed."""
        model, processor = lab.reference(self.model)
        return listed(model, processor, scenes(self.world, self.seed * 1_000_000 + first, count), arm)

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """A tiny random model lists four scenes, and the measure of answers that are made up."""
        from tessera.lab.protocols.answering import said
        from tessera.lab.protocols.tiny import tiny_model

        model, processor = tiny_model()
        items = scenes({**SCENES, "width": 64, "height": 64}, 0, 4)
        found: dict[str, list[float] | str] = {}
        for arm in (Plug("random", keep=(0.5,)), Vary("mismatched image", image="mismatched")):
            found[arm.label] = " | ".join(text for [text] in said(model, processor, items, arm, 4)[0])
        names = [[t.name for t in item.sample.truth()] for item in items]
        made_up = [", ".join([*names[n][n % 2 :], *names[(n + 1) % 4][:n]]) for n in range(4)]
        for metric, (totals, counts) in sorted(chair(items, made_up).metrics.items()):
            found[metric] = [*totals.tolist(), *counts.tolist()]
        return found


def scenes(world: Mapping[str, Any], first: int, count: int) -> list[Item]:
    """Scenes of the test split, each with the one question for a list of everything from left to right."""
    from tessera.evaluation.items import Item
    from tessera.world import World
    from tessera.world.lists import LIST_PROMPTS, lists
    from tessera.world.scene import Question

    drawn = World(**{"split": "test", **world})
    made = []
    for index in range(first, first + count):
        sample = drawn[index]
        asked = Question(type="list", form="open", text=LIST_PROMPTS["names"], answer=lists(sample)["names"])
        made.append(Item(sample, (asked,)))
    return made


def listed(model: Any, processor: Any, items: list[Item], arm: Arm, max_new_tokens: int = 48) -> Outcomes:
    """Outcomes per image of an arm's lists, averaged over the repeats of a `Plug`."""
    from tessera.lab.protocols.answering import said

    found = said(model, processor, items, arm, max_new_tokens)
    return averaged([chair(items, [text for [text] in texts]) for texts in found])


def chair(items: Sequence[Item], texts: Sequence[str]) -> Outcomes:
    """Lists, one for each item: names between commas. Texts of signs, in capitals, are no things; a name that stands twice
    counts twice, as in CHAIR."""
    import numpy as np

    rows = []
    for item, text in zip(items, texts, strict=True):
        named = [name.strip() for name in text.split(",") if name.strip() and not name.strip().isupper()]
        truths = [{truth.name, *truth.synonyms} for truth in item.sample.truth()]
        wrong = [name for name in named if not any(name in truth for truth in truths)]
        found = sum(not truth.isdisjoint(named) for truth in truths)
        rows.append((len(wrong), len(named), float(bool(wrong)), 1, found, len(truths)))
    columns = np.asarray(rows, dtype=np.float64).T
    names = ("hallucinated", "sentences", "recall")
    return Outcomes({name: (columns[2 * n], columns[2 * n + 1]) for n, name in enumerate(names)})
