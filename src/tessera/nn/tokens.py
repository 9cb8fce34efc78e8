"""`VisualTokens`, the container that model sockets exchange: visual tokens with their places in the image.

Shapes: B images, N tokens per image, D channels, Q tokens of a question, E channels of the language model.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(slots=True, kw_only=True)
class VisualTokens:
    """Visual tokens of B images.

    features  [B, N, D] float
    positions [B, N, 2] float, (x, y) centres in the original image's unit square, x right, y down
    mask      [B, N] bool, False for tokens that are not there
    scores    [B, N] float or None, importance as a part judged it
    source    [B, N] int64 or None, index of the encoder a token came from, -1 where several contributed
    grid      (rows, columns) when the tokens are a full raster in reading order, else None
    levels    [B, N, D] each: the encoder's features from shallow to deep, the last of them `features`; None where nobody asked
    """

    features: Tensor
    positions: Tensor
    mask: Tensor
    scores: Tensor | None = None
    source: Tensor | None = None
    grid: tuple[int, int] | None = None
    levels: tuple[Tensor, ...] | None = None

    @property
    def count(self) -> int:
        """N, tokens per image."""
        return self.features.shape[1]

    @property
    def width(self) -> int:
        """D, channels per token."""
        return self.features.shape[2]

    def with_features(self, features: Tensor) -> VisualTokens:
        """The same tokens with other features [B, N, D'], which no levels belong to."""
        return VisualTokens(
            features=features,
            positions=self.positions,
            mask=self.mask,
            scores=self.scores,
            source=self.source,
            grid=self.grid,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionText:
    """What is asked about each of B images, as the language model's input embeddings.

    embeddings [B, Q, E] float
    mask       [B, Q] bool, False at padding; a row may be empty
    """

    embeddings: Tensor
    mask: Tensor


def grid_positions(rows: int, columns: int, device: torch.device | None = None) -> Tensor:
    """Centres [rows * columns, 2] of a raster over the unit square, reading order, float32."""
    y = (torch.arange(rows, device=device, dtype=torch.float32) + 0.5) / rows
    x = (torch.arange(columns, device=device, dtype=torch.float32) + 0.5) / columns
    return torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)], dim=-1).reshape(-1, 2)


def from_grid(features: Tensor, grid: tuple[int, int], source: int = -1) -> VisualTokens:
    """Wraps features [B, rows * columns, D] that lie on a raster in reading order."""
    batch, count, _ = features.shape
    return VisualTokens(
        features=features,
        positions=grid_positions(*grid, device=features.device).expand(batch, count, 2),
        mask=torch.ones(batch, count, dtype=torch.bool, device=features.device),
        source=torch.full((batch, count), source, dtype=torch.int64, device=features.device),
        grid=grid,
    )


def resample(features: Tensor, grid: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """Bilinear resampling of a raster: [B, h * w, D] on `grid` -> [B, h' * w', D] on `target`."""
    if grid == target:
        return features
    image = features.unflatten(1, grid).permute(0, 3, 1, 2)
    smaller = target[0] < grid[0] or target[1] < grid[1]
    image = F.interpolate(image, size=target, mode="bilinear", antialias=smaller)
    return image.flatten(2).transpose(1, 2)
