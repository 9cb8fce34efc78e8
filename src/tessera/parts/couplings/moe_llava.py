"""MoE-LLaVA puts a mixture of experts in the place of every other MLP of the language model.

Source: Lin et al., "MoE-LLaVA: Mixture of Experts for Large Vision-Language Models", 2024, arXiv:2401.15947. Image features stand
among the text as in LLaVA. In three stages the projector learns on captions, then projector and language model on
instructions, then the experts, each of which begins as a copy of the MLP in its place: a linear router sends every
token, of image and text alike, to its two best of four experts, and a balance loss keeps them all in use.

Deviations: the second expert is the second best, not one drawn with noise (which DeepSpeed, the released code's engine, does);
capacity binds in training only, so that an answer does not depend on what else is in the batch; padding takes no expert's place.

Shapes: B rows, T tokens, E channels, N = B T tokens, e experts.
"""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from tessera.config import config
from tessera.errors import UserError
from tessera.models.coupling import Coupling, Pass, decoder_layers
from tessera.nn.moe import MixtureOfExperts
from tessera.registry import part

PLACES = {
    "sparse": lambda layers: range(0, layers, 2),
    "dense": lambda layers: range(layers),
    "first_half": lambda layers: range(layers // 2),
    "second_half": lambda layers: range(layers // 2, layers),
}
"""Which of the language model's layers get experts."""


@part("moe_llava", socket="couplings", catalog=8)
class MoELLaVA(Coupling):
    """Features among the text's embeddings, experts in the language model's MLPs. A dense language model's weights may be loaded
    into it (`start={"language_model": ...}`): every expert then begins as a copy of its MLP."""

    @config
    class Config:
        """experts of a layer, and how many a token goes to (with one, its output is weighted by the router's probability, so that
        the router learns; the copied model then does not begin as the dense one); places: which layers get experts; capacity of
        an expert in training, as a multiple of its even share, None for no bound; balance: weight of the balance loss."""

        experts: int = 4
        per_token: int = 2
        places: Literal["sparse", "dense", "first_half", "second_half"] = "sparse"
        capacity: float | None = 1.5
        balance: float = 0.01

        def validate_routing(self) -> None:
            if not 1 <= self.per_token <= self.experts:
                raise ValueError(f"per_token is a number of experts, from 1 to {self.experts}, not {self.per_token}.")
            if self.capacity is not None and self.capacity <= 0:
                raise ValueError(f"capacity must be positive, or null for no bound, not {self.capacity}.")
            if self.balance < 0:
                raise ValueError(f"balance cannot be negative, as {self.balance} is.")

    def __init__(self, config: Config, width: int, language_model: nn.Module | None = None, **context: Any) -> None:
        super().__init__(config, width, language_model, **context)
        layers = decoder_layers(language_model, "moe_llava")
        self.layers: list[MixtureOfExperts] = []  # a plain list: they belong to the language model
        for index in PLACES[config.places](len(layers)):
            layer: Any = layers[index]
            if not isinstance(getattr(layer, "mlp", None), nn.Module):
                raise UserError(f"coupling 'moe_llava' replaces MLPs; layers of type {type(layer).__name__} have no `mlp`.")
            layer.mlp = MixtureOfExperts(layer.mlp, width, config.experts, config.per_token, config.capacity)
            self.layers.append(layer.mlp)

    def sockets(self) -> dict[str, nn.Module]:
        """The layers of experts: what the third stage trains."""
        return {"coupling": nn.ModuleList(self.layers)}

    def begin(self, now: Pass) -> None:
        """Tells the routers what is padding."""
        for layer in self.layers:
            layer.real, layer.routing = now.present(), None

    def loss(self, now: Pass, last_hidden_state: Tensor) -> Tensor | None:
        """The weighted sum of the layers' balance losses."""
        found = [layer.routing.balance() for layer in self.layers if layer.routing is not None]
        return self.config.balance * sum(found) if found else None
