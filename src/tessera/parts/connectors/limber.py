"""LiMBeR: one linear map between a frozen image encoder and a frozen language model, and nothing else is trained.

Source: Merullo et al., "Linearly Mapping from Image to Text Space", 2023, arXiv:2209.15162. The encoder's spatial features become
soft prompts in front of the text through a single linear layer, which learns from captions alone. That this is enough says how
alike the two spaces are; what survives the map says what the encoder knows: one trained with language brings over categories,
one trained without transfers visual attributes.

Deviations: none in the map. Dropout on its output is that of the authors' configurations. Which weights stay is a matter of the
training stage: `TRAINED` names the one socket that moves.

Shapes: [B, N, D] -> [B, N, E], N the places of the encoder's map.
"""

from __future__ import annotations

from torch import nn

from tessera.config import config
from tessera.models.contracts import Connector
from tessera.nn import initialise
from tessera.nn.tokens import VisualTokens
from tessera.registry import part

TRAINED = {"connector": 1.0}
"""The `train` of a stage: encoder and language model are frozen."""


@part("limber", socket="connectors", catalog=254)
class Limber(Connector):
    """[B, N, width] -> [B, N, out_width]."""

    @config
    class Config:
        """dropout: chance that a channel of the output is zeroed in training."""

        dropout: float = 0.1

        def validate_dropout(self) -> None:
            if not 0 <= self.dropout < 1:
                raise ValueError(f"dropout is a chance from 0 to below 1, not {self.dropout}.")

    def __init__(self, config: Config, width: int, out_width: int) -> None:
        super().__init__(config, width, out_width)
        self.project = nn.Linear(width, out_width)
        self.dropout = nn.Dropout(config.dropout)
        self.init_weights()

    def init_weights(self) -> None:
        """Truncated normal 0.02, zero bias."""
        initialise.tree(self)

    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """[B, N, D] -> [B, N, E]."""
        return tokens.with_features(self.dropout(self.project(tokens.features)))
