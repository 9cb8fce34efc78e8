"""Batches for supervised training from any reader: conversations in, token ids with labels on the assistant's
words out.

Legend: B conversations of a batch, T tokens, N images of the batch in order.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tessera.data.check import KINDS
from tessera.data.images import open_image
from tessera.data.parquet_reader import KEPT_GROUPS
from tessera.data.records import Record, validate
from tessera.data.row_reader import BadRow, Reader, Skipped
from tessera.errors import UserError

IGNORED = -100
"""Label of a token that bears no loss."""
MULTIPLE = 8
"""Batches are padded to a multiple of this."""
PATIENCE = 100
"""Bad rows one after the other until the data set is given up."""

_log = logging.getLogger(__name__)
_NOT_PASSED_ON = ("input_ids", "attention_mask", "assistant_masks", "offset_mapping")


@dataclass(frozen=True, slots=True)
class Encoded:
    """One conversation: token ids and labels, the processor's other outputs, and the names of its images."""

    input_ids: list[int]
    labels: list[int]
    others: dict[str, Tensor]
    image_keys: list[str]


class SupervisedData:
    """The trainer's data over a reader. Epochs are shuffled; a batch depends on (seed, step) alone.

    processor a transformers processor with a chat template: marks for generation ({% generation %}) are used
    where it has them; otherwise a turn's tokens are what it adds to the turns before batch_size conversations
    per step, over all processes and micro-batches together max_length tokens of a conversation, images
    included; default: the processor's own `max_length`, if any accumulation micro-batches per step and
    process

    Rows that cannot be used (broken, unreadable image, too long) are counted in `skipped`, and the next
    usable row of the reader takes their place. Shuffling needs no memory per row. A reader with costly jumps
    (Parquet) is shuffled in blocks: the blocks, and the rows of a few blocks at a time among each other.
    """

    def __init__(
        self,
        reader: Reader,
        processor: Any,
        batch_size: int,
        seed: int = 0,
        max_length: int | None = None,
        *,
        accumulation: int = 1,
    ) -> None:
        if batch_size < accumulation or accumulation < 1:
            raise UserError(f"a batch of {batch_size} conversations cannot be cut into {accumulation} parts.")
        self.reader, self.processor = reader, processor
        self.batch_size, self.accumulation = batch_size, accumulation
        self.max_length = max_length if max_length is not None else getattr(processor, "max_length", None)
        self.skipped = Skipped()
        self._order = Order(reader.blocks, seed)
        self._bad: set[int] = set()

    @property
    def finite(self) -> bool:
        """True: the same images come again."""
        return True

    def __len__(self) -> int:
        """Rows of an epoch."""
        return len(self.reader)

    def indices(self, step: int, rank: int = 0, world_size: int = 1, micro: int = 0) -> list[int]:
        """Rows of the slice of step `step` for process `rank` and micro-batch `micro`, before bad ones are
        replaced.
        """
        slices, slot = self.accumulation * world_size, micro * world_size + rank
        first, size = step * self.batch_size, self.batch_size
        numbers = range(first + slot * size // slices, first + (slot + 1) * size // slices)
        return [self._order(number) for number in numbers]

    def batch(self, step: int, rank: int = 0, world_size: int = 1, micro: int = 0) -> dict[str, Any]:
        """Step `step`'s slice for process `rank` and micro-batch `micro`, as arguments of the model's
        forward.

        int64 [B, T] input_ids, attention_mask (0 = padding, at the right), labels (-100 = no loss; not
        shifted), what the processor makes of images (pixel_values [N, 3, H, W] ...), and image_keys, N names.
        Raises `UserError` when `PATIENCE` rows in a row cannot be used.
        """
        indices = self.indices(step, rank, world_size, micro)
        if not indices:
            raise UserError(
                f"a batch of {self.batch_size} conversations is too small for {world_size} processes with "
                f"{self.accumulation} micro-batches each."
            )
        return self.collate([self._usable(index) for index in indices])

    def encode(self, index: int) -> Encoded:
        """Row `index` as tokens and labels. Raises `BadRow` with the reason if it cannot be trained on."""
        from jinja2 import TemplateError

        record = self.reader[index]
        errors = [p.message for p in validate(record) if KINDS[p.kind] == "error"]
        if errors:
            raise BadRow(self.reader.where(index), errors[0])
        try:
            return self._encode(record, index)
        except (ValueError, TemplateError) as error:  # UserErrors among them
            raise BadRow(self.reader.where(index), str(error)) from error

    def collate(self, rows: Sequence[Encoded]) -> dict[str, Any]:
        """One batch of encoded conversations, padded at the right to the longest, rounded up to 8s."""
        longest = max(len(row.input_ids) for row in rows)
        shape = len(rows), -(-longest // MULTIPLE) * MULTIPLE
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        batch: dict[str, Any] = {
            "input_ids": torch.full(shape, getattr(tokenizer, "pad_token_id", None) or 0),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, IGNORED),
        }
        for number, row in enumerate(rows):
            size = len(row.input_ids)
            batch["input_ids"][number, :size] = torch.tensor(row.input_ids)
            batch["labels"][number, :size] = torch.tensor(row.labels)
            batch["attention_mask"][number, :size] = 1
        for name in dict.fromkeys(name for row in rows for name in row.others):
            batch[name] = _joined(name, [(len(r.input_ids), r.others[name]) for r in rows if name in r.others], shape)
        keys = [key for row in rows for key in row.image_keys]
        if "pixel_values" in batch and len(batch["pixel_values"]) == len(keys):
            batch["image_keys"] = keys
        return batch

    def _usable(self, index: int) -> Encoded:
        for tries in range(min(PATIENCE, len(self.reader))):
            row = (index + tries) % len(self.reader)
            if row in self._bad:
                continue
            try:
                return self.encode(row)
            except BadRow as bad:
                self._bad.add(row)
                self.skipped.add(bad)
                if self.skipped.count <= 5:
                    _log.warning("row skipped: %s", bad)
        raise UserError(
            f"{self.reader.path}: {min(PATIENCE, len(self.reader))} rows one after the other cannot be trained on. "
            f"The first that was met is {self.skipped.first[0]} See: tessera data check"
        )

    def _encode(self, record: Record, index: int) -> Encoded:
        keys = [
            str(image) if isinstance(image, Path) else f"{self.reader.where(index)}, image {number}"
            for number, image in enumerate(record.images)
        ]
        messages = _chat(record)
        whole, mask = self._marked(messages) if self._marks() else self._compared(messages)
        ids = _row(whole["input_ids"])
        if self.max_length is not None and len(ids) > self.max_length:
            over = len(ids) - self.max_length
            raise UserError(f"the conversation has {len(ids)} tokens, {over} more than {self.max_length}.")
        if not mask.any():
            raise UserError("no token of the assistant is left to learn from.")
        others = {n: v for n, v in whole.items() if isinstance(v, Tensor) and n not in _NOT_PASSED_ON}
        return Encoded(ids.tolist(), torch.where(mask, ids, IGNORED).tolist(), others, keys)

    def _marks(self) -> bool:
        tokenizer = getattr(self.processor, "tokenizer", None)
        template = getattr(self.processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
        return isinstance(template, str) and re.search(r"{%-?\s*generation\b", template) is not None

    def _marked(self, messages: list[dict[str, Any]]) -> tuple[dict[str, Any], Tensor]:
        """The full conversation, and which of its tokens are the assistant's, as the template marks them."""
        try:
            whole = self._apply(messages, return_assistant_tokens_mask=True)
            return whole, _row(whole["assistant_masks"]).bool()
        except (NotImplementedError, KeyError):  # tokenizers that do not know where their tokens come from
            return self._compared(messages)

    def _compared(self, messages: list[dict[str, Any]]) -> tuple[dict[str, Any], Tensor]:
        """The full conversation, and which of its tokens are the assistant's, found by comparing it with its
        beginnings.
        """
        whole = self._apply(messages)
        ids = _row(whole["input_ids"])
        mask = torch.zeros(len(ids), dtype=torch.bool)
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = _row(self._apply(messages[:number], add_generation_prompt=True)["input_ids"])
            through = _row(self._apply(messages[: number + 1])["input_ids"]) if messages[number + 1 :] else ids
            if not (torch.equal(ids[: len(before)], before) and torch.equal(ids[: len(through)], through)):
                raise UserError(
                    "the chat template writes earlier turns differently when later ones follow, so the assistant's "
                    "tokens cannot be told apart; mark them in the template with {% generation %}."
                )
            mask[len(before) : len(through)] = True
        return whole, mask

    def _apply(self, messages: list[dict[str, Any]], **options: Any) -> dict[str, Any]:
        made: dict[str, Any] = self.processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt", **options
        )
        return made


class Order:
    """Running numbers 0, 1, ... to rows: every epoch of borders[-1] numbers is another permutation of all
    rows.

    borders: 0, ..., rows; the borders of blocks of rows that are cheap to read together. Blocks are shuffled,
    and the rows of `KEPT_GROUPS` consecutive blocks among each other. Memory grows with the blocks, not with
    the rows.
    """

    def __init__(self, borders: Sequence[int], seed: int) -> None:
        self.borders, self.seed = np.asarray(borders), seed
        self.rows = int(borders[-1])
        self._epoch = functools.lru_cache(maxsize=2)(self._windows)

    def __call__(self, number: int) -> int:
        epoch, place = divmod(number, self.rows)
        blocks, ends = self._epoch(epoch)
        window = bisect.bisect_right(ends, place)
        start = ends[window - 1] if window else 0
        key = f"{self.seed}.{epoch}.{window}"
        place = shuffled(place - start, ends[window] - start, key)
        for block in blocks[window * KEPT_GROUPS : (window + 1) * KEPT_GROUPS]:
            size = int(self.borders[block + 1] - self.borders[block])
            if place < size:
                return int(self.borders[block]) + place
            place -= size
        raise AssertionError("a window is as long as its blocks")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.borders.tolist(), self.seed)

    def _windows(self, epoch: int) -> tuple[list[int], list[int]]:
        """Blocks in the epoch's order, and where each window of `KEPT_GROUPS` of them ends, in rows."""
        sizes = np.diff(self.borders)
        blocks = np.random.default_rng([self.seed, epoch]).permutation(len(sizes))
        ends = np.cumsum(sizes[blocks])
        last = np.minimum(np.arange(KEPT_GROUPS - 1, len(ends) + KEPT_GROUPS - 1, KEPT_GROUPS), len(ends) - 1)
        return blocks.tolist(), ends[last].tolist()


def shuffled(place: int, size: int, key: str) -> int:
    """Where `place` of 0 .. size - 1 goes in the permutation called `key`, without writing the permutation
    down.

    A Feistel network of four rounds on the next power of four, followed until the value falls into the range
    (cycle walking; Black and Rogaway 2002, https://doi.org/10.1007/3-540-45760-7_9).
    """
    half = ((size - 1).bit_length() + 1) // 2
    while True:
        left, right = place >> half, place & ((1 << half) - 1)
        for salt in _salts(key):
            left, right = right, left ^ (_mixed(right ^ salt) & ((1 << half) - 1))
        place = left << half | right
        if place < size:
            return place


@functools.lru_cache(maxsize=64)
def _salts(key: str) -> tuple[int, ...]:
    digest = hashlib.blake2b(key.encode(), digest_size=32).digest()
    return tuple(int.from_bytes(digest[i : i + 8]) for i in range(0, 32, 8))


def _mixed(value: int) -> int:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
    value = (value ^ value >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
    return value ^ value >> 31


def _chat(record: Record) -> list[dict[str, Any]]:
    """The messages with opened images in their parts. White space around images belongs to file formats, not
    to questions.
    """
    images = iter(record.images)
    messages = []
    for message in record.messages:
        parts: list[dict[str, Any]] = []
        shows = any(part["type"] == "image" for part in message["content"])
        for part in message["content"]:
            if part["type"] == "image":
                parts.append({"type": "image", "image": open_image(next(images))})
            elif text := part["text"].strip() if shows else part["text"]:
                parts.append({"type": "text", "text": text})
        messages.append({"role": message["role"], "content": parts})
    return messages


def _row(value: Any) -> Tensor:
    """The only row of what a processor gives for one conversation."""
    return torch.as_tensor(value).reshape(-1)


def _joined(name: str, values: list[tuple[int, Tensor]], shape: tuple[int, int]) -> Tensor:
    """Values of all rows as one: per token padded with zeros to `shape`, per image one after the other."""
    if all(value.ndim == 2 and tuple(value.shape) == (1, length) for length, value in values):
        joined = values[0][1].new_zeros(shape)
        for number, (length, value) in enumerate(values):
            joined[number, :length] = value[0]
        return joined
    try:
        return torch.cat([value for _, value in values])
    except RuntimeError as error:
        shapes = ", ".join(sorted({str(list(value.shape)) for _, value in values}))
        raise UserError(
            f"the processor makes {name} of different shapes ({shapes}), which one batch cannot hold: use batch size 1."
        ) from error
