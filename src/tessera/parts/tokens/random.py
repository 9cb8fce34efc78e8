"""Random dropping: the control that every ranking of visual tokens has to beat.

No paper. A share of each image's tokens stays, chosen by a hash of (seed, place among the row's visual tokens): independent
of the image, the same in every run and on every machine, and for a row whatever rows stand beside it. Later drops
choose among the tokens that earlier ones left.

Deviations: none. Newline tokens stay and are not counted, as in the parts that this one is compared with.

Shapes: B rows, S tokens of a prompt, K of them left, V visual tokens of the batch.
"""

from __future__ import annotations

from torch import Tensor

from tessera.config import config
from tessera.hosts.token_reduction import PlaceDrop
from tessera.nn.raster import Raster
from tessera.nn.reduction import hashed
from tessera.registry import part


@part("random", socket="tokens")
class Random(PlaceDrop):
    """Drops visual tokens by chance."""

    @config
    class Config(PlaceDrop.Config):
        """seed: of the choice."""

        seed: int = 0

    def order(self, visual: Tensor, places: Raster | None) -> Tensor:
        """By a hash of the number among the row's visual tokens."""
        return hashed(visual.cumsum(1), self.config.seed)
