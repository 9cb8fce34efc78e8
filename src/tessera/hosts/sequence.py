"""The prompt behind a cache, and which of its tokens exist at which decoder layer.

A `Sequence` is attached to the key-value cache (`tessera.hosts.caches`), so it follows beams, turns, copies and generations that
interleave.

Legend: B rows, S tokens of the prompt, K tokens left at a layer, E width of the language model.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tessera.errors import UserError
from tessera.hosts.prompts import Images
from tessera.hosts.values import Positions


@dataclass(slots=True, eq=False)
class TokenStage:
    """The tokens that exist between two boundaries at which something was dropped.

    index    [B, K] int64, full index of each token, increasing
    present  [B, K] bool, False at the filler slots that rows with fewer tokens have
    visual   [B, K] bool, present visual tokens
    real     [B, K] bool, neither padding nor filler
    query    [B] int64, pruned index of the last instruction token
    full     whether nothing has been dropped yet
    ragged   whether any slot is a filler
    shift    [B] int64, by how much later tokens move to the front; None: positions are kept
    """

    index: Tensor
    present: Tensor
    visual: Tensor
    real: Tensor
    query: Tensor
    full: bool = True
    ragged: bool = False
    shift: Tensor | None = None

    def rows(self, chosen: Callable[[Tensor], Tensor]) -> TokenStage:
        """The same stage with its rows chosen or repeated."""
        return TokenStage(
            index=chosen(self.index),
            present=chosen(self.present),
            visual=chosen(self.visual),
            real=chosen(self.real),
            query=chosen(self.query),
            full=self.full,
            ragged=self.ragged,
            shift=None if self.shift is None else chosen(self.shift),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """What one part decided at one boundary, in full indices, so that it can be applied again.

    keep    [B, S] bool
    hidden  [B, K, E] states that replaced those of the K tokens before the drop, or None
    """

    keep: Tensor
    positions: Positions
    hidden: Tensor | None

    def rows(self, chosen: Callable[[Tensor], Tensor]) -> Decision:
        """The same decision with its rows chosen or repeated."""
        return Decision(chosen(self.keep), self.positions, None if self.hidden is None else chosen(self.hidden))


class PlugSession:
    """The time during which some parts are plugged in."""

    def __init__(self) -> None:
        self.open = True


@dataclass(slots=True, eq=False)
class Sequence:
    """One prefill and everything that follows on its cache.

    length   S
    visual   [B, S] bool, visual tokens
    real     [B, S] bool, False at padding
    query    [B] int64, full index of the last instruction token
    counts   gives the tokens per image in the order of the prompt, None when the family cannot say
    images   the encoding of its images (`tessera.hosts.prompts.Images`), None if it was not seen
    notes    for parts: what belongs to this sequence. Tensors whose first dimension is the rows follow beams.
    layers   number of decoder layers
    session  of the parts it was made under
    stages   the stage of every decoder layer; `root` is that of the full prompt
    plan     what was decided at each boundary
    """

    length: int
    visual: Tensor
    real: Tensor
    query: Tensor
    layers: int
    session: PlugSession
    has_visual: bool
    images: Images | None = None
    counts: Callable[[Sequence], list[int] | None] | None = None
    notes: dict[Any, Any] = field(default_factory=dict)
    stages: list[TokenStage] = field(default_factory=list)
    plan: dict[int, list[Decision]] = field(default_factory=dict)
    root: TokenStage = field(init=False)
    _image_of: Tensor | None = None

    def __post_init__(self) -> None:
        rows = self.visual.shape[0]
        index = torch.arange(self.length, device=self.visual.device).expand(rows, self.length)
        present = torch.ones_like(self.visual)
        self.root = TokenStage(index, present, self.visual, self.real, self.query)
        self.stages = [self.root] * self.layers

    def __deepcopy__(self, memo: dict[int, Any]) -> Sequence:
        """A sequence for the copy of a cache: tensors are never changed in place, so only what is replaced is copied."""
        other = copy.copy(self)
        other.stages, other.plan = list(self.stages), {layer: list(decisions) for layer, decisions in self.plan.items()}
        other.notes = {
            key: value.clone() if isinstance(value, Tensor) else copy.deepcopy(value, memo) for key, value in self.notes.items()
        }
        return other

    @property
    def image_of(self) -> Tensor:
        """[B, S] int64: which image of its row a visual token belongs to, counted from 0; -1 for text."""
        if self._image_of is None:
            self._image_of = image_numbers(self.visual, self.counts(self) if self.counts is not None else None)
        return self._image_of

    @property
    def dropped(self) -> bool:
        """Whether any layer holds fewer tokens than the prompt has."""
        return not self.stages[-1].full

    def gap(self, layer: int) -> int:
        """How many tokens of the prompt `layer` does not hold."""
        if layer >= len(self.stages) or self.stages[layer].full:
            return 0
        return self.length - int(self.stages[layer].index.shape[1])

    def enter(self, layer: int, stage: TokenStage) -> None:
        """From `layer` on, these tokens exist."""
        self.stages[layer:] = [stage] * (len(self.stages) - layer)

    def choose(self, chosen: Callable[[Tensor], Tensor]) -> None:
        """Chooses or repeats rows, as the cache does with its own."""
        rows = self.visual.shape[0]
        changed: dict[int, TokenStage] = {}
        for stage in (self.root, *self.stages):
            if id(stage) not in changed:
                changed[id(stage)] = stage.rows(chosen)
        self.stages = [changed[id(stage)] for stage in self.stages]
        self.root = changed[id(self.root)]
        self.plan = {layer: [d.rows(chosen) for d in decisions] for layer, decisions in self.plan.items()}
        self.visual, self.real, self.query = chosen(self.visual), chosen(self.real), chosen(self.query)
        if self._image_of is not None:
            self._image_of = chosen(self._image_of)
        for key, value in self.notes.items():
            if isinstance(value, Tensor) and value.dim() and value.shape[0] == rows:
                self.notes[key] = chosen(value)


def image_numbers(visual: Tensor, counts: list[int] | None) -> Tensor:
    """Of `visual` [B, S] bool: [B, S] int64, the image of its row that a token belongs to, -1 for text.

    `counts` are the tokens of each image in the order of the prompt; rows that were repeated for beams share theirs. Without
    counts, tokens that stand next to each other are one image.
    """
    if counts is None:
        before = torch.nn.functional.pad(visual, (1, 0))[:, :-1]
        return torch.where(visual, (visual & ~before).cumsum(1) - 1, -1)
    found = torch.full_like(visual, -1, dtype=torch.int64)
    for row, own in enumerate(images_of_rows(visual, counts)):
        numbers = [number for number, image in enumerate(own) for _ in range(counts[image])]
        found[row, visual[row]] = torch.tensor(numbers, dtype=torch.int64, device=visual.device)
    return found


def images_of_rows(visual: Tensor, counts: list[int]) -> list[list[int]]:
    """Which images, of which `counts` says how many tokens each has, stand in each row of `visual` [B, S].

    Rows that were repeated for beams share theirs. Raises `UserError` if the tokens do not add up.
    """
    wanted, total = visual.sum(1).tolist(), sum(counts)
    repeats = max(1, sum(wanted) // total) if total else 1
    rows: list[list[int]] = []
    image = 0
    for number, tokens in enumerate(wanted):
        if number % repeats:
            rows.append(rows[-1])
            continue
        own: list[int] = []
        while tokens > 0 and image < len(counts):
            own.append(image)
            tokens -= counts[image]
            image += 1
        if tokens:
            raise UserError(f"row {number} has {wanted[number]} visual tokens; images of {counts} tokens do not add up to that.")
        rows.append(own)
    return rows
