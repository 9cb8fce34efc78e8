"""Arguments of a decoder layer, from full to pruned indices.

The model computes masks, positions and rotations for the full prompt; a layer that holds fewer tokens gets the rows and columns
of those it holds. Where there was no mask there stays none: a subset of a causal sequence is causal, and the fast kernel is kept.

Legend: B rows, S tokens of the prompt, K left at a layer, Q queries of this forward, N keys that the layer will see, E width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tessera.errors import TesseraError, UserError
from tessera.hosts.caches import static
from tessera.hosts.sequence import Sequence, TokenStage

KNOWN = frozenset({"hidden_states", "attention_mask", "position_ids", "past_key_values", "cache_position", "use_cache"})


def take(tensor: Tensor, index: Tensor, dim: int = -2) -> Tensor:
    """Chooses along the sequence dimension: tensor [..., B or 1, S, D] (dim -2) or [..., B or 1, S] (dim -1), index [B, K]."""
    if dim == -1:
        return take(tensor.unsqueeze(-1), index).squeeze(-1)
    rows, kept = index.shape
    shape = (*tensor.shape[:-3], rows, *tensor.shape[-2:])
    places = index.view(*([1] * (tensor.dim() - 3)), rows, kept, 1).expand(*shape[:-2], kept, shape[-1])
    return tensor.expand(shape).gather(-2, places)


def pruned_mask(
    mask: Any,
    queries: Tensor,
    keys: Tensor,
    present: Tensor | None,
    *,
    offset: int,
    rows_given: bool,
    window: int | None,
    implementation: str,
    dtype: torch.dtype,
) -> Any:
    """The mask of one layer in pruned indices.

    mask      full: None, [B or 1, 1, Q', S'] bool (True: seen) or float (added), or [B, S'] for kernels that take lengths
    queries   [B, Q] and keys [B, N] int64, full indices
    present   [B, N] bool, False at fillers; None: all are there
    offset    full index of the mask's first column
    rows_given  whether the mask's rows already are the queries (in decoding), or are to be chosen by their places
    window    a layer sees only this many last tokens, and the mask does not say so; None: it sees all
    """
    if mask is None:
        if present is None and window is None:
            return None
        if "flash" in implementation:
            if window is not None:
                raise UserError("tokens cannot be dropped in a sliding-window layer with flash attention; use sdpa.")
            return present
        seen = keys[:, None, :] <= queries[:, :, None]
        if window is not None:
            seen = seen & (keys[:, None, :] > queries[:, :, None] - window)
        seen = (seen if present is None else seen & present[:, None, :])[:, None]
        if implementation != "eager":
            return seen
        return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min)
    if not isinstance(mask, Tensor):
        raise UserError(f"masks of type {type(mask).__name__} are not re-mapped: load the model with attn_implementation='sdpa'.")
    width = mask.shape[-1]
    places = keys - offset
    outside = (places >= width) | (places < 0)
    hide = outside if present is None else outside | ~present
    places = places.clamp(0, width - 1)
    if mask.dim() == 2:
        chosen = mask.expand(keys.shape[0], width).gather(1, places)
        return chosen & ~hide if mask.dtype == torch.bool else chosen * ~hide
    rows = keys.shape[0]
    full = mask.expand(rows, *mask.shape[1:])
    heads = full.shape[1]
    if not rows_given:
        full = full.gather(2, queries[:, None, :, None].expand(rows, heads, queries.shape[1], width))
    full = full.gather(3, places[:, None, None, :].expand(rows, heads, full.shape[2], places.shape[1]))
    hide = hide[:, None, None]
    return full & ~hide if full.dtype == torch.bool else full.masked_fill(hide, torch.finfo(full.dtype).min)


Memo: TypeAlias = list[tuple[tuple[Any, ...], Any]]
"""What layers of one forward share, because they have the same stage and are given the same objects."""


def shared(memo: Memo, key: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """What `make` gave for the same objects (compared by identity, whole numbers by value)."""
    for known, value in memo:
        if len(known) == len(key) and all(a is b or (type(a) is int and a == b) for a, b in zip(known, key, strict=True)):
            return value
    value = make()
    memo.append((key, value))
    return value


def pruned_arguments(
    kwargs: Mapping[str, Any],
    sequence: Sequence,
    stage: TokenStage,
    layer: int,
    hidden: Tensor,
    *,
    prefill: bool,
    memo: Memo,
    implementation: str,
    rotations: Callable[[TokenStage, Any], Any],
) -> dict[str, Any]:
    """Keyword arguments of decoder layer `layer` for the tokens of `stage`; hidden [B, Q, E] are its input after pruning.

    `rotations(stage, indices)` gives the position embeddings of re-indexed tokens.
    """
    changed = dict(kwargs)
    if prefill:
        refuse_unknown(kwargs, sequence.length)
    if "attention_mask" in kwargs:
        changed["attention_mask"] = _mask(kwargs, sequence, stage, layer, hidden, prefill, memo, implementation)
    for name in [name for name in kwargs if name.startswith("position_embeddings")]:
        given = kwargs[name]
        if given is None:
            continue
        if stage.shift is not None:
            changed[name] = shared(memo, (stage, given, "rotations"), functools.partial(rotations, stage, given))
        elif prefill:
            changed[name] = shared(memo, (stage, given, "rotations"), functools.partial(_taken, given, stage.index))
    position_ids = kwargs.get("position_ids")
    if prefill and isinstance(position_ids, Tensor):
        # gaps would look like packed sequences to kernels that take lengths
        changed["position_ids"] = (
            None
            if "flash" in implementation
            else shared(memo, (stage, position_ids, "places"), lambda: take(position_ids, stage.index, -1))
        )
    return changed


def refuse_unknown(kwargs: Mapping[str, Any], length: int) -> None:
    """Raises `TesseraError` for an argument that seems to hold something per token and is not known."""
    for name, value in kwargs.items():
        known = name in KNOWN or name.startswith("position_embeddings")
        if not known and isinstance(value, Tensor) and length in value.shape:
            raise TesseraError(f"the decoder layers take {name!r} {tuple(value.shape)}: how to drop tokens from it is not known.")


def _taken(given: Any, index: Tensor) -> Any:
    if isinstance(given, Tensor):
        return take(given, index)
    return type(given)(take(part, index) for part in given)


def _mask(
    kwargs: Mapping[str, Any],
    sequence: Sequence,
    stage: TokenStage,
    layer: int,
    hidden: Tensor,
    prefill: bool,
    memo: Memo,
    implementation: str,
) -> Any:
    mask = kwargs["attention_mask"]
    cache: Any = kwargs.get("past_key_values")
    queries, kept = hidden.shape[1], stage.index.shape[1]
    stored: Any = cache.layers[layer] if cache is not None and layer < len(cache.layers) else None
    window = getattr(stored, "sliding_window", None)
    if stored is None:
        total = kept
    elif static(stored):
        if getattr(stored, "is_sliding", False):
            raise UserError("tokens cannot be dropped in a static cache with sliding-window layers: use a dynamic cache.")
        total = int(stored.max_cache_len)
    elif not hasattr(stored, "get_seq_length"):
        raise UserError(f"tokens cannot be dropped in a cache layer of type {type(stored).__name__}.")
    else:
        total = int(stored.get_seq_length()) + queries
    full_length = sequence.length + total - kept
    if mask is None and not stage.ragged and (window is None or full_length <= window):
        return None
    in_store = total
    if window is not None and not prefill:
        in_store = int(stored.keys.shape[-2]) + queries

    def make() -> Any:
        later = sequence.length + torch.arange(total - kept, device=stage.index.device)
        keys = torch.cat([stage.index, later.expand(stage.index.shape[0], -1)], 1)
        present = None
        if stage.ragged:
            present = torch.cat([stage.present, stage.present.new_ones(len(keys), total - kept)], 1)
        wanted = stage.index if prefill else keys[:, total - queries :]
        if in_store < total:
            keys, present = keys[:, -in_store:], None if present is None else present[:, -in_store:]
        offset = full_length - mask.shape[-1] if window is not None and not prefill and isinstance(mask, Tensor) else 0
        return pruned_mask(
            mask,
            wanted,
            keys,
            present,
            offset=offset,
            rows_given=not prefill,
            window=window if mask is None else None,
            implementation=implementation,
            dtype=hidden.dtype,
        )

    return shared(memo, (stage, mask, total, in_store), make)
