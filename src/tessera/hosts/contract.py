"""What a part sees of the model that it is plugged into."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from tessera.hosts.architecture import Architecture
from tessera.hosts.sequence import Sequence


class Host(Protocol):
    """A transformers vision-language model seen through its sockets; parts read it and change nothing.

    What it says of a forward (`sequence`, `prefill`, `visual_at`) is about the one that this thread runs, or ran last.
    Legend: B rows, K tokens left at a layer.
    """

    @property
    def model(self) -> Any:
        """The model, a `PreTrainedModel`."""
        ...

    @property
    def architecture(self) -> Architecture:
        """Its modules and what they can do."""
        ...

    @property
    def layers(self) -> nn.ModuleList:
        """Decoder layers."""
        ...

    @property
    def layer_count(self) -> int:
        """Their number."""
        ...

    @property
    def title(self) -> str:
        """The model's family, for people."""
        ...

    @property
    def sequence(self) -> Sequence | None:
        """The sequence of the forward."""
        ...

    @property
    def prefill(self) -> bool:
        """Whether the forward is a prefill."""
        ...

    def visual_at(self, layer: int) -> Tensor | None:
        """[B, K] bool: visual ones among the tokens of decoder layer `layer` in the forward; None when there are none (decoding,
        or a prompt without images)."""
        ...

    def aside(self) -> AbstractContextManager[None]:
        """A context for forwards of this thread that leave no trace in what the host says."""
        ...
