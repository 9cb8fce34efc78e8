"""Questions about prefixes, decoded side by side on `LlamaDecoder`.

Legend: I items (images' prefixes), P tokens of a prefix, Q most questions of an item, S most packed question tokens of an item,
C columns of the buffer, E width, V vocabulary, R = I * Q rows, row i * Q + q being question q of item i.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.generation.linear import hooked, with_packed_linears
from tessera.generation.llama import MOST_PARAMETERS, LlamaDecoder

_PREFIX, _PADDING = -1, -2


class PackedEngine:
    """A composed model with a Llama-type language model behind prefix coupling."""

    def __init__(self, model: Any, suppressed: Sequence[int]) -> None:
        self.model = model.model
        self.decoder = LlamaDecoder(self.model.language_model, model.get_output_embeddings(), suppressed)
        self.towers = towers(model.model)

    @property
    def column_bytes(self) -> int:
        """Bytes of keys and values that one token takes."""
        return self.decoder.column_bytes

    def image_features(self, pixel_values: Tensor) -> Tensor:
        """[images, 3, S, S] -> [images, n, E]."""
        features: Tensor = self.towers.get_image_features(pixel_values)
        return features

    def prefix(self, ids: Tensor, features: Tensor | None) -> Tensor:
        """`ids` [I, P], features [images in order, n, E] or None -> keys and values [2 L, I, K, P, D]."""
        return self.decoder.prefix(self.model.embed(ids, features))

    def select(self, state: Tensor, items: Sequence[int]) -> Tensor:
        """The state of some items, in the order named."""
        if list(items) == list(range(state.shape[1])):
            return state
        return state.index_select(1, torch.tensor(items, device=state.device))

    def start(self, state: Tensor, questions: Sequence[Sequence[Sequence[int]]], steps: int) -> PackedRun:
        """Reads the questions (token ids per item and question, each item at least one); at most `steps` steps will follow."""
        return PackedRun(self.decoder, state, questions, steps)


def towers(model: Any) -> Any:
    """The composed model with the linear layers in front of its language model packed, but for parts that are hooked or large."""
    twin = copy.copy(model)
    twin._modules = dict(model._modules)
    for name, part in model.named_children():
        small = sum(p.numel() for p in part.parameters()) <= MOST_PARAMETERS
        if name != "language_model" and small and hooked(part) is None:
            twin._modules[name] = with_packed_linears(part)
    return twin


class PackedRun:
    """Some questions half answered; `logits [R, V]` are of the next token. Rows without a question hold nonsense."""

    def __init__(
        self,
        decoder: LlamaDecoder,
        state: Tensor,
        questions: Sequence[Sequence[Sequence[int]]],
        steps: int,
        shift: int = 0,
    ) -> None:
        """shift: by how much the position behind the prefix is other than its length (M-RoPE's images take fewer positions)."""
        self.decoder = decoder
        device = decoder.device
        items, prefix = state.shape[1], state.shape[3]
        self.questions = max(len(asked) for asked in questions)
        packed = max(sum(map(len, asked)) for asked in questions)
        self.used = prefix + packed
        columns = self.used + self.questions * steps
        self.buffer = state.new_empty((*state.shape[:3], columns, state.shape[4]))
        self.buffer[:, :, :, :prefix] = state
        lay = _lay_out(questions, self.questions, packed, prefix, columns)
        ids, positions, owners, lasts, lengths = (torch.tensor(part, device=device) for part in lay)
        positions, lengths = positions + shift, lengths + shift
        decoder.reach(int(lengths.max()) + steps + 1)
        self.positions = lengths.flatten()
        single = self.questions == 1
        even = single and not bool((owners == _PADDING).any())
        # With one question per item and no padding, later tokens see every column: no mask is needed.
        self.mask = None if even else _mask(owners, self.questions, decoder.dtype)
        self.logits = decoder.forward(
            F.embedding(ids.flatten(), decoder.embedding),
            decoder.rotation(positions.flatten()),
            self.buffer,
            packed,
            prefix,
            _reading_mask(owners[:, : self.used], prefix, decoder.dtype),
            keep=(lasts + torch.arange(items, device=device)[:, None] * packed).flatten(),
        )

    @property
    def rows(self) -> int:
        """R = I * Q."""
        return self.positions.shape[0]

    def step(self, tokens: Tensor) -> None:
        """Appends one token to every row: tokens [R]."""
        mask = self.mask
        self.logits = self.decoder.forward(
            F.embedding(tokens, self.decoder.embedding),
            self.decoder.rotation(self.positions),
            self.buffer,
            self.questions,
            self.used,
            None if mask is None else mask[..., : self.used + self.questions],
            keep=None,
        )
        self.positions = self.positions + 1
        self.used += self.questions

    def keep(self, rows: Sequence[int]) -> list[int]:
        """Lets go of items without any of these rows, once they are a third of all, because the buffer is copied then;
        returns the rows that remain, as they were numbered."""
        items = sorted({row // self.questions for row in rows})
        if 3 * len(items) > 2 * self.buffer.shape[1]:
            return list(range(self.rows))
        remaining = [i * self.questions + q for i in items for q in range(self.questions)]
        chosen = torch.tensor(items, device=self.buffer.device)
        self.buffer = self.buffer.index_select(1, chosen)
        self.mask = None if self.mask is None else self.mask.index_select(0, chosen)
        places = torch.tensor(remaining, device=self.buffer.device)
        self.positions = self.positions.index_select(0, places)
        self.logits = self.logits.index_select(0, places)
        return remaining


Grid = list[list[int]]


def _lay_out(
    questions: Sequence[Sequence[Sequence[int]]], most: int, packed: int, prefix: int, columns: int
) -> tuple[Grid, Grid, Grid, Grid, Grid]:
    """Where every token goes: ids [I, S], positions [I, S], owners [I, C], last token of each question [I, Q], and the position
    that follows it [I, Q]. An owner is the number of the question that a column belongs to, or a prefix, or padding."""
    ids: Grid = []
    positions: Grid = []
    owners: Grid = []
    lasts: Grid = []
    lengths: Grid = []
    for asked in questions:
        row: list[int] = []
        places: list[int] = []
        owner = [_PREFIX] * prefix
        last = []
        for number, question in enumerate(asked):
            row += question
            places += range(prefix, prefix + len(question))
            owner += [number] * len(question)
            last.append(len(row) - 1)
        rest, missing = packed - len(row), most - len(asked)
        ids.append(row + [0] * rest)
        positions.append(places + [0] * rest)
        answers = [q if q < len(asked) else _PADDING for q in range(most)]
        steps = (columns - prefix - packed) // most
        owners.append(owner + [_PADDING] * rest + answers * steps)
        lasts.append(last + [0] * missing)
        lengths.append([prefix + len(question) for question in asked] + [0] * missing)
    return ids, positions, owners, lasts, lengths


def _mask(owners: Tensor, most: int, dtype: torch.dtype) -> Tensor:
    """`owners` [I, C] -> [I, 1, Q, C]: what the answers of each question see, as numbers added to the scores."""
    asking = torch.arange(most, device=owners.device)[:, None]
    seen = (owners[:, None, :] == asking) | (owners[:, None, :] == _PREFIX)
    return _added(seen, dtype)[:, None]


def _reading_mask(owners: Tensor, prefix: int, dtype: torch.dtype) -> Tensor:
    """`owners` [I, P + S] -> [I, 1, S, P + S]: what the questions' own tokens see."""
    places = torch.arange(owners.shape[1], device=owners.device)
    mine = owners[:, prefix:, None] == owners[:, None, :]
    seen = (mine & (places <= places[prefix:, None])) | (owners[:, None, :] == _PREFIX)
    return _added(seen, dtype)[:, None]


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)
