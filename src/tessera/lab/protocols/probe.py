"""A finished model answers while what it sees, or how it computes, is disturbed: order of tokens or patches, noise in layers.

Nothing is trained, so the units are images. A probe's own functions disturb; every arm is asked the same questions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from tessera import registry
from tessera.errors import TesseraError
from tessera.lab.claims import part_module
from tessera.lab.experiment import Arm, Vary
from tessera.lab.outcomes import Outcomes
from tessera.lab.protocols.base import Protocol, chosen

if TYPE_CHECKING:
    from torch import Tensor

    from tessera.evaluation.items import Item
    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab
    from tessera.lab.outcomes import Unit

DISTURBANCES = ("intact", "tokens", "within", "between", "mismatched", "mean", "patches")


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbed(Protocol):
    """model: a reference model; types: of the questions; groups: of tokens; grid: patches per side; world: options of
    `WorldConfig`, for all arms; seed: of the first look's scenes and of everything random.

    Arms: `Vary(name, look=...)`: "intact"; order of all "tokens", "within" or "between" groups; tokens of a "mismatched" picture;
    every token their "mean", so that no place is left; order of "patches".
    Metrics: accuracy; accuracy/<type>.
    """

    name: ClassVar[str] = "disturbed"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "image"
    looks: ClassVar[tuple[int, ...]] = (200, 500, 1000)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)

    model: str = "nano"
    types: tuple[str, ...] = ("existence", "position", "relation", "attribute", "at")
    groups: int = 7
    grid: int = 7
    world: Mapping[str, Any] = field(default_factory=lambda: {"kinds": {"scene": 1.0}, "things": (1, 4)})
    seed: int = 0

    def models(self) -> tuple[str, ...]:
        """The reference model."""
        return (self.model,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """`count` new questions of the look's own scenes."""
        model, processor = lab.reference(self.model)
        items = questions(self.world, self.types, self.seed + look, count)
        return right(items, self._said(model, processor, items, arm, self.seed + look))

    def _said(
        self, model: Any, processor: Any, items: Sequence[Item], arm: Arm, seed: int, max_new_tokens: int = 24
    ) -> list[list[str]]:
        """All arms are answered through image features, intact ones too, so that the same engine answers."""
        import torch

        from tessera.evaluation.harness import ask

        part, look = part_module(registry.get("probes", "intriguing_properties")), chosen(arm, look=DISTURBANCES)["look"]
        generator = torch.Generator().manual_seed(seed)

        def change(found: list[Tensor]) -> list[Tensor]:
            if look == "mismatched":
                return [*found[1:], *found[:1]]
            if look in ("tokens", "within", "between"):
                how: Any = look
                return [tokens[part.order(len(tokens), self.groups, how, generator)] for tokens in found]
            if look == "mean":
                return [tokens.mean(0, keepdim=True).expand_as(tokens) for tokens in found]
            return found

        answers: Any = part.Tokens(model, processor, change)
        if look == "patches":
            answers = part.AlteredPictures(answers, lambda image: part.shuffle_patches(image, self.grid, generator))
        return ask(model, processor, items, answers=answers, max_new_tokens=max_new_tokens)

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """The tokens that a tiny random model says under every disturbance."""
        from tessera.lab.protocols.tiny import tiny_model

        model, processor = tiny_model()
        small = cls(groups=4, grid=4)
        items = questions({**small.world, "width": 64, "height": 64}, ("existence", "position"), 0, 8)
        found: dict[str, list[float] | str] = {}
        for look in DISTURBANCES:
            said = small._said(model, processor, items, Vary(look, look=look), 0, max_new_tokens=4)
            found[look] = " | ".join(text for texts in said for text in texts)
        for metric, (totals, counts) in right(items, [[q.answer for q in item.questions] for item in items]).metrics.items():
            found[f"truth: {metric}"] = [*totals.tolist(), *counts.tolist()]
        found["asked"] = " | ".join(f"{q.text} {q.answer}" for item in items for q in item.questions)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class NoisyLayers(Protocol):
    """The loss on right answers while noise is added, in one decoder layer after the other, to what the layer adds.

    model, types, world, seed: as of `Disturbed`; noise: its strength relative to what the layer adds.
    Arms: `Vary(name, layers=(start, end))` in shares of the depth, (0, 0.25) the lower quarter; the loss is the mean over the
    layers between. `how="none"` leaves them as they are.
    Metrics: loss, cross-entropy per token of the right answer of one question for each picture, in nats.
    """

    name: ClassVar[str] = "noisy layers"
    version: ClassVar[int] = 1
    unit: ClassVar[Unit] = "image"
    looks: ClassVar[tuple[int, ...]] = (60, 150, 300)
    arms: ClassVar[tuple[type[Arm], ...]] = (Vary,)

    model: str = "nano"
    types: tuple[str, ...] = ("existence", "position", "at", "box")
    noise: float = 1.0
    world: Mapping[str, Any] = field(default_factory=lambda: {"kinds": {"scene": 1.0}, "things": (1, 4)})
    seed: int = 0

    def models(self) -> tuple[str, ...]:
        """The reference model."""
        return (self.model,)

    def measure(self, lab: Lab, arm: Arm, look: int, first: int, count: int) -> Outcomes:
        """`count` pictures of the look's own scenes."""
        model, processor = lab.reference(self.model)
        items = questions(self.world, self.types, self.seed + look, 2 * count * len(self.types))
        return self._measured(model, processor, items[:count], arm)

    def _measured(self, model: Any, processor: Any, items: Sequence[Item], arm: Arm) -> Outcomes:
        import numpy as np
        import torch

        from tessera.hosts.plug import attach

        part = part_module(registry.get("probes", "intriguing_properties"))
        start, end, how = _band(arm)
        layers = attach(model).architecture.layers
        band = [layer for n, layer in enumerate(layers) if start * len(layers) <= n < end * len(layers)]
        losses = np.zeros(len(items))
        for number, layer in enumerate(band):
            for place, item in enumerate(items):
                generator = torch.Generator().manual_seed(self.seed + place * len(band) + number)
                if how == "none":
                    losses[place] += loss(model, processor, item) / len(band)
                    continue
                with part.disturbed_layer(layer, "noise", self.noise, generator):
                    losses[place] += loss(model, processor, item) / len(band)
        return Outcomes({"loss": (losses, np.ones(len(items)))})

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Losses of a tiny random model under noise in its lower and upper half, and in neither."""
        from tessera.lab.protocols.tiny import tiny_model

        model, processor = tiny_model()
        small = cls()
        items = questions({**small.world, "width": 64, "height": 64}, ("existence", "position"), 0, 6)[:3]
        arms = (Vary("lower", layers=(0.0, 0.5)), Vary("upper", layers=(0.5, 1.0)), Vary("intact", layers=(0.0, 1.0), how="none"))
        return {arm.label: small._measured(model, processor, items, arm).of("loss")[0].tolist() for arm in arms}


def right(items: Sequence[Item], said: Sequence[Sequence[str]]) -> Outcomes:
    """Right answers per item, of all questions and of each type."""
    import numpy as np

    from tessera.evaluation.scoring import score

    names = ["accuracy", *(f"accuracy/{kind}" for kind in sorted({q.type for item in items for q in item.questions}))]
    totals, counts = ({name: np.zeros(len(items)) for name in names} for _ in range(2))
    for place, (item, texts) in enumerate(zip(items, said, strict=True)):
        for question, text in zip(item.questions, texts, strict=True):
            for name in ("accuracy", f"accuracy/{question.type}"):
                totals[name][place] += score(question, text).right
                counts[name][place] += 1
    return Outcomes({name: (totals[name], counts[name]) for name in names})


def questions(world: Mapping[str, Any], types: Sequence[str], seed: int, count: int) -> list[Item]:
    """`count` questions of the test split, in equal shares of the types."""
    from tessera.evaluation.items import EvaluationConfig, draw
    from tessera.world import WorldConfig

    return draw(EvaluationConfig(world=WorldConfig(**{"split": "test", **world}), types=tuple(types), n=count, seed=seed))


def loss(model: Any, processor: Any, item: Item) -> float:
    """Cross-entropy per token, in nats, of the right answer to an item's first question; it follows the prompt."""
    import torch
    from torch.nn import functional as F

    question, images = item.questions[0], item.sample.images()
    content = [*({"type": "image"} for _ in images), {"type": "text", "text": question.text}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    whole = processor(images=list(images), text=[prompt + question.answer], return_tensors="pt").to(model.device)
    head = processor(images=list(images), text=[prompt], return_tensors="pt")["input_ids"].shape[1]
    with torch.no_grad():
        logits = model(**whole).logits[0, head - 1 : -1].float()
    return float(F.cross_entropy(logits, whole["input_ids"][0, head:]))


def _band(arm: Arm) -> tuple[float, float, str]:
    """(start, end, how) of an arm. Raises `TesseraError` for others."""
    assert isinstance(arm, Vary)
    how = arm.settings.get("how", "noise")
    if "layers" not in arm.settings or how not in ("noise", "none") or arm.settings.keys() - {"layers", "how"}:
        raise TesseraError(f"an arm has layers=(start, end) and how='noise' or 'none', not {dict(arm.settings)}.")
    start, end = arm.settings["layers"]
    return float(start), float(end), str(how)
