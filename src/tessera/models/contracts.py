"""The contracts of the sockets that stand between pixels and language model in a composed model.

That of `pixels` is `tessera.models.views.EncoderViews`, that of `couplings` `tessera.models.coupling.Coupling`. A constructor
says what a socket hands to its parts: their `Config` first, the rest by keyword.

Shapes: M images of S x S pixels, N tokens of each, on a grid (rows, columns) in reading order if there is one; K encoders; D
channels of vision, E of the language model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from tessera.nn.tokens import VisualTokens
from tessera.nn.vit import Backend


class Encoder(nn.Module, ABC):
    """Pixels [M, 3, S, S] in [-1, 1] -> features [M, N, D] on a full grid.

    image_size S, width D, grid (rows, columns); patch_size in pixels where it is not S / rows; level_count: how many layers
    `levels` shows, 0 for an encoder that shows its last one only.
    """

    image_size: int
    width: int
    grid: tuple[int, int]
    patch_size: int | None = None
    level_count: int = 0

    def __init__(self, config: Any, backend: Backend | None = None) -> None:
        """backend: knows which attention implementation the model runs."""
        super().__init__()

    @abstractmethod
    def forward(self, pixel_values: Tensor) -> Tensor:
        """Raises `UserError` for images of another size."""

    def levels(self, pixel_values: Tensor) -> Sequence[Tensor]:
        """The outputs [M, N, D] of `level_count` layers, the last being what `forward` gives."""
        raise NotImplementedError


class Experts(nn.Module, ABC):
    """K sets of visual tokens [M, N_k, D_k], one of each encoder -> one set [M, N, D] on a full grid.

    width D, grid (rows, columns). A class with `reads_levels` is also built with levels, the `level_count` of each encoder, and
    its sets hold their `levels`; one with `reads_question` is built with text_width E, and called as forward(sets, question), a
    `QuestionText` or None.
    """

    reads_levels: ClassVar[bool] = False
    reads_question: ClassVar[bool] = False
    width: int
    grid: tuple[int, int]

    def __init__(self, config: Any, widths: Sequence[int], grids: Sequence[tuple[int, int]]) -> None:
        """Widths D_k and grids of all encoders. Raises `UserError` for encoders that do not fit together."""
        super().__init__()

    @abstractmethod
    def forward(self, sets: Sequence[VisualTokens]) -> VisualTokens:
        """Raises `UserError` for a set that is not a full grid."""


class TokenModule(nn.Module, ABC):
    """Visual tokens [M, N, D] -> [M, N', D'], N' = `token_count(config, N)`.

    width D', grid (rows, columns) or None where what stays is no full grid.
    """

    width: int
    grid: tuple[int, int] | None

    def __init__(self, config: Any, width: int, grid: tuple[int, int]) -> None:
        """Width D and grid of the tokens that come in."""
        super().__init__()
        self.width, self.grid = width, grid

    @staticmethod
    @abstractmethod
    def token_count(config: Any, count: int) -> int:
        """N' of N."""

    @abstractmethod
    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """Raises `UserError` for tokens that are no full grid, if it needs one."""


class Connector(nn.Module, ABC):
    """Visual tokens [M, N, D] -> [M, N', E], N' = `token_count(config, N)`.

    out_width E. A connector whose `reads_question` is set is called as forward(tokens, question), a `QuestionText` of E channels
    or None. Its tokens are others for every question, so a packed row can hold a single one (`questions.most=1`).
    """

    reads_question: bool = False

    def __init__(self, config: Any, width: int, out_width: int) -> None:
        """Width D of the tokens, out_width E."""
        super().__init__()
        self.out_width = out_width

    @staticmethod
    def token_count(config: Any, count: int) -> int:
        """N' of N; by default N."""
        return count

    @abstractmethod
    def forward(self, tokens: VisualTokens) -> VisualTokens:
        """Raises `UserError` for tokens that are no full grid, if it needs one, and without a question, if it reads one."""
