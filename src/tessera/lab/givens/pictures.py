"""Properties of pictures and clips: little changes from frame to frame; what a grid cuts apart is missed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from tessera.lab.experiment import Condition, Effect, Given, Vary

if TYPE_CHECKING:
    from tessera.lab.lab import Lab

SEED = 900
"""Of the pictures on which preconditions are measured: other ones than the experiments'."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StillBackground(Given):
    """At most the share `most` of a clip's visual tokens is of its first frame or of places that changed since the frame before.

    model: a reference model, whose visual tokens are squares of the picture; frames: of a clip; threshold: mean absolute
    difference of the model's pixel values under a token, times 255, above which it changed; clips: that are looked at
    """

    words: ClassVar[str] = "the first frame and what changed since the frame before (share of a clip's visual tokens)"

    model: str
    frames: int
    most: float
    threshold: float = 0.1
    clips: int = 200

    def depends(self) -> tuple[str, ...]:
        """See `Given`."""
        return (f"model {self.model}",)

    def measure(self, lab: Lab) -> Condition:
        """The mean share over clips, with a bootstrap interval."""
        import numpy as np

        from tessera.data.dense import to_pixels
        from tessera.lab.judge import estimate
        from tessera.lab.outcomes import Outcomes
        from tessera.world import World, WorldConfig

        model, _ = lab.reference(self.model)
        side, size = round(model.tokens_per_image**0.5), int(model.image_size)
        world = World(WorldConfig(split="test", width=size, height=size))
        shares = []
        for index in range(self.clips):
            sample = world.sample(SEED * 1_000_000 + index, "clip", self.frames)
            frames = to_pixels([np.asarray(image) for image in sample.images()])
            under = (frames[1:] - frames[:-1]).abs().mean(1).unflatten(2, (side, -1)).unflatten(1, (side, -1)).mean((2, 4))
            changed = int((under * 255 > self.threshold).sum())
            shares.append((side**2 + changed) / (len(frames) * side**2))
        outcomes = {"clips": Outcomes({"share": (np.asarray(shares), np.ones(len(shares)))})}
        found = estimate(Effect((("clips", "share", 1.0),), self.words), outcomes, "share", "image", 0.95)
        return Condition(
            words=self.words, value=found.value, low=found.low, high=found.high, needed=self.most, holds=found.high < self.most
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CutThingsAreMissed(Given):
    """Things that the detail grid cuts are recognised less often than others in the views of these layers.

    layers: of the views; scenes: that are looked at
    """

    words: ClassVar[str] = "how much more of the things are recognised that no line of the grid cuts (share)"

    layers: tuple[str, ...]
    scenes: int = 150

    def depends(self) -> tuple[str, ...]:
        """See `Given`."""
        return ("protocol views",)

    def measure(self, lab: Lab) -> Condition:
        """The difference of the shares, with a bootstrap interval over scenes."""
        from tessera.lab.judge import estimate
        from tessera.lab.protocols.views import Views

        outcomes = Views().outcomes(lab, Vary("views", uses=("mini_monkey",), layers=self.layers), 0, SEED * 1_000, self.scenes)
        effect = Effect((("views", "other things", 1.0), ("views", "cut things", -1.0)), self.words)
        found = estimate(effect, {"views": outcomes}, "cut things", "image", 0.95)
        return Condition(words=self.words, value=found.value, low=found.low, high=found.high, needed=0.0, holds=found.low > 0)
