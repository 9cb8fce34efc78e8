"""What the `compression` socket speaks of: weights in, fewer, smaller or merged weights out.

A part of the socket takes finished models and gives a model of the same class, called in the same way, with other weights or
other layers inside; the models that it was given stay as they are. It is a `Compressor` or a `Merger`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from torch import Tensor, nn

from tessera.errors import UserError

M = TypeVar("M", bound=nn.Module)

Score: TypeAlias = Callable[[Any], "float | Tensor"]
"""How good a model is, more is better: accuracy on held-out data, or minus a loss where a gradient is wanted."""

_TOWERS = ("encoders", "vision_tower", "visual", "vision_model", "encoder")


class Compressor(ABC):
    """One model and a batch of its inputs -> a smaller copy of the model."""

    @abstractmethod
    def compress(self, model: M, inputs: Mapping[str, Any]) -> M:
        """A smaller copy of `model`; `inputs` is one batch that `model(**inputs)` takes, about 32 images.

        Raises `UserError` for a model that there is nothing to compress in.
        """


class Merger(ABC):
    """Several models of one architecture, and what judges them -> one model."""

    @abstractmethod
    def merge(self, models: Sequence[M], score: Score | None = None) -> M:
        """One model of the architecture of `models`, with weights made from theirs.

        Raises `UserError` for models that differ in architecture, and where a score is needed and missing.
        """


def vision_of(model: nn.Module) -> nn.Module:
    """The vision tower (of Tessera's own models all encoders) of a vision-language model, else the model itself.

    Raises `UserError` if a model says that it reads images and no tower is found.
    """
    inner = getattr(model, "model", None)
    base = inner if hasattr(inner, "get_image_features") else model
    if not hasattr(base, "get_image_features"):
        return model
    for name in _TOWERS:
        tower = getattr(base, name, None)
        if isinstance(tower, nn.Module):
            return tower
    raise UserError(f"the vision tower of {type(model).__name__} is not found; name the module, within='path.to.tower'.")


def stored_bytes(model: nn.Module) -> int:
    """Bytes of everything that a checkpoint of `model` holds; what is shared counts once."""
    found = {(value.data_ptr(), value.shape): value.numel() * value.element_size() for value in model.state_dict().values()}
    return sum(found.values())


def same_architecture(models: Sequence[nn.Module]) -> None:
    """Raises `UserError`, naming the first difference, unless all models have weights of the same names and shapes."""
    if not models:
        raise UserError("give at least one model.")
    first = {name: tuple(value.shape) for name, value in models[0].state_dict().items()}
    for number, model in enumerate(models[1:], 1):
        other = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise UserError(
                    f"models 0 and {number} differ: {name} is {_shown(first.get(name))} in one, {_shown(other.get(name))} in the "
                    "other; only models of one architecture can be merged."
                )


def _shown(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else str(list(shape))
