"""Which weights of a model move, and how: adapters, low-rank updates, chosen slices.

A tuning puts new parameters beside a model's own ones. At the start the model computes what it did before, bit for bit; the
tuning can be switched off for a moment, taken out again, saved by itself and, where its form allows it, merged into the weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from tessera.errors import UserError

FOLDER = "tuning"
"""Where a tuning lies inside the folder of the model that it was trained for."""


class Tuning(ABC):
    """A model -> the same with new parameters beside its own, which do nothing at first."""

    Config: ClassVar[type]
    config: Any

    @abstractmethod
    def put_in(self, model: nn.Module) -> nn.Module:
        """Puts the tuning into `model` until `take_out`; gives its parameters as one module, the same for every call.

        Raises `UserError` for a model that it does not fit, and if it is in a model already.
        """

    @abstractmethod
    def take_out(self) -> None:
        """Leaves the model as it was before `put_in`, apart from what was merged into it."""

    @abstractmethod
    def off(self) -> AbstractContextManager[None]:
        """The model without the tuning, for the time of the context."""

    @abstractmethod
    def save(self, folder: str | Path) -> Path:
        """Writes parameters (safetensors) and options (JSON), whole or not at all."""

    def merge(self) -> None:
        """Adds what was learned to the model's own weights. Raises `UserError` where the form of the tuning does not allow it."""
        raise UserError(f"{type(self).__name__} cannot be merged into the weights of a model; save it and plug it in.")
