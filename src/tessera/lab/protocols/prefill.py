"""The cost of a prefill (pixels to the first logits) with a part plugged in, on a LLaVA with random weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from tessera.lab.experiment import Arm, Plug
from tessera.lab.protocols.base import CostProtocol, Costs

if TYPE_CHECKING:
    from tessera.lab.behaviour import Numbers
    from tessera.lab.lab import Lab


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill(CostProtocol):
    """layers, width: of the language model; patches: side of the grid of visual tokens; text: tokens of the prompt; rounds:
    timed.

    Counted: tokens a layer; flop ratio (host without the part over host with it); language flop ratio (the same without the
    tower and the connector, which many papers leave out); token ratio. Timed: prefill ratio.
    """

    name: ClassVar[str] = "prefill"
    version: ClassVar[int] = 1

    layers: int = 12
    width: int = 512
    patches: int = 24
    text: int = 64
    rounds: int = 5

    def measure(self, lab: Lab, treatment: Arm, baseline: Arm | None) -> Costs:
        """The plain host against the host with the part of `treatment` (a `Plug`)."""
        import torch

        from tessera.measure.llava import Shape, host, inputs

        assert isinstance(treatment, Plug)
        shape = Shape(layers=self.layers, width=self.width, patches=self.patches, text_tokens=self.text)
        model, prompt = host(shape), inputs(shape)

        def forward(of: Any) -> Callable[[], Any]:
            return lambda: of(**prompt, use_cache=True, logits_to_keep=1)

        with ExitStack() as stack, torch.inference_mode():
            plugged = plugged_copy(stack, model, treatment)
            unplugged, thin = forward(model), forward(plugged.model)
            thin()
            tokens = [stage.index.shape[1] for stage in plugged.sequence.stages]
            all_, left = lab.flops(unplugged), lab.flops(thin)
            seeing = lab.flops(lambda: model.get_image_features(pixel_values=prompt["pixel_values"]))
            taken = lab.timing(unplugged, thin, self.rounds) if self.rounds else None
        mean = sum(tokens) / len(tokens)
        return Costs(
            counted={
                "flop ratio": round(all_ / left, 4),
                "language flop ratio": round((all_ - seeing) / (left - seeing), 4),
                "tokens a layer": mean,
                "token ratio": round(prompt["input_ids"].shape[1] / mean, 4),
            },
            timed={} if taken is None else {"prefill ratio": (taken.median, taken.low, taken.high)},
            shape=f"{self.layers} layers of width {self.width}, {self.patches**2} visual tokens and {self.text} of text",
        )

    @classmethod
    def golden(cls, lab: Lab) -> Numbers:
        """Counted on a host of three layers."""
        made = cls(layers=3, width=64, patches=4, text=8, rounds=0).measure(lab, Plug("random", keep=(0.5,)), None)
        return {name: [value] for name, value in made.counted.items()}


def plugged_copy(stack: ExitStack, model: Any, arm: Plug) -> Any:
    """A host with one part on a copy of the model that shares its weights, until the stack is closed."""
    from tessera.hosts.plug import plug

    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return stack.enter_context(plug(copy.deepcopy(model, shared), arm.part, **arm.options))
