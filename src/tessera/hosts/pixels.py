"""The types of the `pixels` socket: one picture as several views, each with its box in the picture.

A part of the socket makes views; any model that takes several images reads them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from PIL import Image

UnitBox: TypeAlias = tuple[float, float, float, float]
"""(x0, y0, x1, y1) in the unit square of the original picture, x to the right, y down."""

WHOLE: UnitBox = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class View:
    """An image for the model, and what part of the original it shows.

    image  what the model gets
    box    what it shows, in the original's unit square
    layer  which of the part's layers it belongs to, in the part's own words ("detail", "adaptive", "global")
    """

    image: Image.Image
    box: UnitBox = WHOLE
    layer: str = ""


class Pixels(ABC):
    """A picture of any size -> views for a model that takes several images, each with its box in the picture."""

    def __init__(self, config: Any) -> None:
        self.config = config

    @classmethod
    def example(cls, side: int) -> dict[str, Any]:
        """Options for a model that reads images of `side` pixels."""
        return {}

    @abstractmethod
    def views(self, image: Image.Image) -> list[View]:
        """The views of one picture, in the order in which the model is to read them."""


def pictures(views: Sequence[View]) -> list[Image.Image]:
    """The images of views, for a processor."""
    return [view.image for view in views]
