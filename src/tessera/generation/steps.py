"""A prompt read by a host and the steps after it, in one of the three ways of `tessera.generation.route`.

The prompt always goes through the full model, as in `generate`. What the language model was given there (its position ids) and
gave back says how to go on: the next position is the last one plus one, on every axis of M-RoPE.

Legend: B rows, S prompt tokens, C columns of a buffer, E width, K key heads, D head width, L layers, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tessera.generation.llama import LlamaDecoder
from tessera.generation.request import Request
from tessera.generation.route import Route

_GROWTH = 128
"""Columns that a buffer grows by, at least."""


class Steps(Protocol):
    """Rows in the middle of their answers; `logits [B, V]` are of the next token."""

    logits: Tensor

    def step(self, tokens: Tensor) -> None:
        """Appends one token to every row: tokens [B]."""


class Reading:
    """A prompt as the model has read it.

    cache      the model's
    logits     [B, V] of the next token
    positions  [B, S] or [axes, B, S], what the language model was given; None if it was given none
    plain      whether the output layer makes these logits of the language model's last states and nothing else does
    """

    __slots__ = ("cache", "logits", "plain", "positions")

    def __init__(self, route: Route, request: Request) -> None:
        with _watched(route.language_model) as seen:
            model_inputs = request.model.prepare_inputs_for_generation(
                request.input_ids, is_first_iteration=True, **request.kwargs
            )
            outputs = request.model(**model_inputs, return_dict=True)
        self.cache: Any = outputs.past_key_values
        self.logits: Tensor = outputs.logits[:, -1]
        self.positions: Tensor | None = seen.get("position_ids")
        states = seen.get("states")
        self.plain = False
        if isinstance(states, Tensor) and route.head is not None:
            again = route.head(states[:, -1])
            scale = self.logits.abs().max().clamp(min=1e-6)
            self.plain = again.shape == self.logits.shape and bool((again - self.logits).abs().max() <= 1e-2 * scale)


@contextmanager
def _watched(language_model: Any) -> Iterator[dict[str, Any]]:
    """Collects what a language model is given and gives, while it lasts."""
    seen: dict[str, Any] = {}
    if language_model is None:
        yield seen
        return

    def before(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen["position_ids"] = kwargs.get("position_ids")

    def after(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        seen["states"] = getattr(output, "last_hidden_state", None)

    handles = [
        language_model.register_forward_pre_hook(before, with_kwargs=True),
        language_model.register_forward_hook(after, with_kwargs=True),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def begin(route: Route, request: Request) -> tuple[Steps, str | None]:
    """Reads the prompt; the steps that follow, and why they are not the fastest kind."""
    way, why = route.way() if request.model is route.model else ("model", "generate() handed the prompt to another model")
    reading = Reading(route, request)
    if way == "own":
        found = plain_keys(reading, route.decoder())
        if isinstance(found, str):
            way, why = "decoder", found
    if way != "model" and (reading.positions is None or not reading.plain):
        way, why = "model", "the model does more with its language model's states than its output layer"
    if way == "own" and not isinstance(found, str):
        return OwnSteps(route.decoder(), *found, request.mask, reading.logits, request.limit), None
    if way == "decoder":
        return DecoderSteps(route, reading.cache, reading.positions, request.mask, reading.logits), why
    return ModelSteps(request, reading), why


def plain_keys(reading: Reading, decoder: LlamaDecoder) -> tuple[list[Tensor], Tensor] | str:
    """(keys and values of every layer in turn, each [B, K, S, D]; next positions [B]), or why the cache is none of these."""
    from transformers.cache_utils import DynamicLayer

    layers = getattr(reading.cache, "layers", [])
    if len(layers) != len(decoder.layers) or any(type(layer) is not DynamicLayer for layer in layers):
        return "its cache is not the ordinary one"
    positions = reading.positions
    if positions is None:
        return "its language model is given no positions"
    last = positions[..., -1]
    axes = last[-3:] if last.ndim == 2 else last[None]
    if not bool((axes == axes[:1]).all()):
        return "the prompt does not end with text"
    rows = reading.logits.shape[0]
    return [kv for layer in layers for kv in (layer.keys, layer.values)], axes[0].expand(rows) + 1


class OwnSteps:
    """Over `LlamaDecoder`, keys and values in one buffer."""

    def __init__(
        self,
        decoder: LlamaDecoder,
        keys: list[Tensor],
        positions: Tensor,
        mask: Tensor | None,
        logits: Tensor,
        limit: int,
    ) -> None:
        """`keys` as from `plain_keys`; positions [B]; mask [B, S], zero at padding, or None; limit: of steps."""
        self.decoder, self.positions, self.logits = decoder, positions, logits
        rows, heads, self.used, width = keys[0].shape
        self.most = self.used + limit
        columns = min(self.most, self.used + _GROWTH)
        self.buffer = keys[0].new_empty((len(keys), rows, heads, columns, width))
        for place, part in zip(self.buffer.unbind(0), keys, strict=True):
            place[:, :, : self.used] = part
        self.mask: Tensor | None = None
        if mask is not None and not bool(mask.all()):
            self.mask = logits.new_zeros((rows, 1, 1, self.most))
            self.mask[:, 0, 0, : self.used].masked_fill_(mask == 0, -torch.inf)
        self._reached = 0

    def step(self, tokens: Tensor) -> None:
        """See `Steps`."""
        if self.used == self.buffer.shape[3]:
            self._grow()
        if self.used >= self._reached:  # a position is never beyond the number of tokens, but for M-RoPE's
            self._reached = self.used + _GROWTH
            self.decoder.reach(int(self.positions.max()) + _GROWTH + 1)
        decoder = self.decoder
        self.logits = decoder.forward(
            F.embedding(tokens, decoder.embedding),
            decoder.rotation(self.positions),
            self.buffer,
            1,
            self.used,
            None if self.mask is None else self.mask[..., : self.used + 1],
            keep=None,
        )
        self.positions = self.positions + 1
        self.used += 1

    def _grow(self) -> None:
        columns = min(self.most, self.used + max(_GROWTH, self.used // 2))
        buffer = self.buffer.new_empty((*self.buffer.shape[:3], columns, self.buffer.shape[4]))
        buffer[:, :, :, : self.used] = self.buffer
        self.buffer = buffer


class DecoderSteps:
    """Over the language model's forward and the output layer."""

    def __init__(self, route: Route, cache: Any, positions: Tensor | None, mask: Tensor | None, logits: Tensor) -> None:
        """`positions` [B, S] or [axes, B, S]; mask [B, S], zero at padding, or None."""
        assert positions is not None
        self.language_model, self.head, self.cache, self.logits = route.language_model, route.head, cache, logits
        self.embed = route.model.get_input_embeddings()
        rows = logits.shape[0]
        last = positions[..., -1:] + 1
        self.positions = last if last.shape[-2] == rows else last.expand(*last.shape[:-2], rows, 1)
        self.mask = mask

    def step(self, tokens: Tensor) -> None:
        """See `Steps`."""
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones((self.mask.shape[0], 1))], 1)
        outputs = self.language_model(
            inputs_embeds=self.embed(tokens[:, None]),
            attention_mask=self.mask,
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.logits = self.head(outputs.last_hidden_state[:, -1])
        self.positions = self.positions + 1


class ModelSteps:
    """Over the full model's forward, arguments made as `generate` makes them."""

    def __init__(self, request: Request, reading: Reading) -> None:
        self.model, self.logits = request.model, reading.logits
        self.kwargs = dict(request.kwargs)
        self.ids = request.input_ids
        self.kwargs["past_key_values"] = reading.cache
        for name in ("attention_mask", "position_ids", "token_type_ids", "mm_token_type_ids"):
            if self.kwargs.get(name) is None:
                self.kwargs.pop(name, None)

    def step(self, tokens: Tensor) -> None:
        """See `Steps`."""
        kwargs = self.kwargs
        if (mask := kwargs.get("attention_mask")) is not None:
            kwargs["attention_mask"] = torch.cat([mask, mask.new_ones((mask.shape[0], 1))], 1)
        if (positions := kwargs.get("position_ids")) is not None:
            kwargs["position_ids"] = positions[..., -1:] + 1  # only the last one is looked at
        if (kinds := kwargs.get("token_type_ids")) is not None:
            kwargs["token_type_ids"] = kinds[:, -1:]
        if (kinds := kwargs.get("mm_token_type_ids")) is not None:
            kwargs["mm_token_type_ids"] = kinds.new_zeros((kinds.shape[0], 1))
        model_inputs = self.model.prepare_inputs_for_generation(tokens[:, None], next_sequence_length=1, **kwargs)
        outputs = self.model(**model_inputs, return_dict=True)
        self.logits = outputs.logits[:, -1]
        kwargs["past_key_values"] = outputs.past_key_values
