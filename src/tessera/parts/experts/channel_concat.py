"""Features of several vision encoders, concatenated on channels.

Sources: Lin et al., "SPHINX: The Joint Mixing of Weights, Tasks, and Visual Embeddings", 2023,
arXiv:2311.07575; Shi et al., "Eagle: Exploring the Design Space for Multimodal LLMs with Mixture of
Encoders", 2024, arXiv:2408.15998, who find that plain channel concatenation is as good as the elaborate
fusions. The token count stays that of the first encoder.

Deviations: none known; grids that differ from the first encoder's are resampled bilinearly to it.

Shapes: K sets [B, N_k, D_k] -> [B, N_1, D_1 + ... + D_K].
"""

from collections.abc import Sequence

import torch

from tessera.config import config
from tessera.errors import UserError
from tessera.models.contracts import Experts
from tessera.nn.tokens import VisualTokens, from_grid, resample
from tessera.registry import part


@part("channel_concat", socket="experts")
class ChannelConcat(Experts):
    """Concatenates the encoders' features place by place."""

    @config
    class Config:
        """No settings."""

    def __init__(self, config: Config, widths: Sequence[int], grids: Sequence[tuple[int, int]]) -> None:
        super().__init__(config, widths, grids)
        self.width = sum(widths)
        self.grid = grids[0]

    def forward(self, sets: Sequence[VisualTokens]) -> VisualTokens:
        """K sets [B, N_k, D_k] -> [B, N_1, sum of D_k].

        Raises `UserError` for a set that is not a full grid.
        """
        features = []
        for index, tokens in enumerate(sets):
            if tokens.grid is None:
                raise UserError(f"experts 'channel_concat' needs full grids; the tokens of encoder {index} are not one.")
            features.append(resample(tokens.features, tokens.grid, self.grid))
        return from_grid(torch.cat(features, dim=-1), self.grid, source=0 if len(sets) == 1 else -1)
