"""What protocols, preconditions and claims are given: reference models, kept results, counting and timing."""

from __future__ import annotations

import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tessera.lab.behaviour import Numbers

if TYPE_CHECKING:
    from tessera.measure.sides import Ratio

Model: TypeAlias = "tuple[Any, Any]"
"""A model in evaluation mode and its processor."""


class Lab(typing.Protocol):
    """One run of claims; `local_lab.LocalLab` is one in this process."""

    def reference(self, name: str, *, copy: bool = False) -> Model:
        """A shipped reference model, or one derived from them (`lab.derived`), in float32 and evaluation mode; `copy`: one of its
        own that may be changed. Raises `UserError` for an unknown name."""

    def weights(self, name: str) -> str:
        """Hash of a reference model's weights; of a derived one the recipe's name with the hashes of what it is made from."""

    def behaviour(self, name: str) -> Numbers:
        """The present behaviour of what a name stands for (`part tokens/fopru`); {"error": ...} where it fails."""

    def kept(self, key: Any, depends: Sequence[str], make: Callable[[], Any]) -> Any:
        """`make()`, plain data, kept under plain data `key` as long as what it depends on (names of behaviours) behaves as it
        did."""

    def folder(self, *key: Any) -> Path:
        """A folder of kept files (trained models) of its own for plain data `key`."""

    def timing(self, slow: Callable[[], Any], fast: Callable[[], Any], rounds: int = 7) -> Ratio:
        """How many times longer `slow` takes than `fast`, in turns in this process."""

    def flops(self, work: Callable[[], Any]) -> int:
        """Floating-point operations of `work`, matrix products and attention, as torch's counter sees them."""
