"""Key-value caches that report the full length while they store the tokens that are left after pruning.

Masks, positions and `generate` ask a cache how long it is; they must be told the length of the full prompt. The gap between
the two is a constant per layer, so that cropping, static tensors and compiled steps work as they did.

Legend: B rows.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from tessera.errors import UserError
from tessera.hosts.sequence import Sequence


class FullLengthCache:
    """Mixed into the class of a live cache: lengths in full indices, storage in pruned ones."""

    tessera_sequence: Sequence | None = None
    layers: list[Any]

    def _gap(self, layer: int) -> int:
        sequence = self.tessera_sequence
        if sequence is None or not sequence.dropped:
            return 0
        filled = layer < len(self.layers) and getattr(self.layers[layer], "is_initialized", False)
        return sequence.gap(layer) if filled else 0

    def _refuse_outside(self) -> None:
        sequence = self.tessera_sequence
        if sequence is not None and not sequence.session.open and sequence.dropped:
            raise UserError(
                "this cache was filled while parts were plugged in, and they dropped tokens: use it inside the same `plug`, "
                "or begin anew without it."
            )

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Stores keys and values of the tokens that a layer holds."""
        self._refuse_outside()
        return super().update(*args, **kwargs)  # type: ignore[misc]

    def get_seq_length(self, layer_idx: int = 0, *args: Any, **kwargs: Any) -> Any:
        """Full length, as the plain cache would say."""
        return super().get_seq_length(layer_idx, *args, **kwargs) + self._gap(layer_idx)  # type: ignore[misc]

    def get_mask_sizes(self, query_length: int, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """Full length and offset of the keys."""
        self._refuse_outside()
        inherited = super().get_mask_sizes  # type: ignore[misc]
        gap = self._gap(layer_idx)
        if not gap:
            return inherited(query_length, layer_idx, *args, **kwargs)
        layer = self.layers[layer_idx]
        if static(layer):
            return inherited(query_length, layer_idx, *args, **kwargs)
        if hasattr(layer, "sliding_window"):
            layer.cumulative_length += gap
            try:
                return inherited(query_length, layer_idx, *args, **kwargs)
            finally:
                layer.cumulative_length -= gap
        length, offset = inherited(query_length, layer_idx, *args, **kwargs)
        return length + gap, offset

    def reset(self) -> None:
        """Empties the cache; the sequence is gone with its keys."""
        self.tessera_sequence = None
        super().reset()  # type: ignore[misc]

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last tokens; those of a prompt from which tokens were dropped cannot be removed."""
        sequence = self.tessera_sequence
        if sequence is not None and sequence.dropped:
            last = len(self.layers) - 1
            if int(self.get_seq_length(last)) - abs(int(tokens_to_remove)) < sequence.length:
                raise UserError(
                    "a cache cannot be cropped into a prompt from which tokens were dropped: crop less, or begin anew."
                )
        super().crop(tokens_to_remove)  # type: ignore[misc]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beams change places."""
        if self.tessera_sequence is not None:
            self.tessera_sequence.choose(lambda t: t.index_select(0, beam_idx.to(t.device)))
        super().reorder_cache(beam_idx)  # type: ignore[misc]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row is repeated."""
        if self.tessera_sequence is not None:
            self.tessera_sequence.choose(lambda t: t.repeat_interleave(repeats, 0))
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only some rows stay."""
        if self.tessera_sequence is not None:
            self.tessera_sequence.choose(lambda t: t[indices.to(t.device)])
        super().batch_select_indices(indices)  # type: ignore[misc]


@functools.cache
def full_length_class(kind: Any) -> Any:
    """The class of caches of `kind` that report full lengths."""
    return type(f"FullLength{kind.__name__}", (FullLengthCache, kind), {"__doc__": kind.__doc__})


def sequence_of(cache: Any) -> Sequence | None:
    """The sequence that is attached to a cache, if there is one."""
    return getattr(cache, "tessera_sequence", None)


def attach_sequence(cache: Any, sequence: Sequence) -> None:
    """Puts a sequence on a cache."""
    if not isinstance(cache, FullLengthCache):
        kind: Any = type(cache)
        cache.__class__ = full_length_class(kind)
    cache.tessera_sequence = sequence


def detach_sequence(cache: Any) -> None:
    """Gives a cache its own class back, unless its sequence dropped something that it must go on knowing about."""
    sequence = sequence_of(cache)
    if isinstance(cache, FullLengthCache) and (sequence is None or not sequence.dropped):
        cache.__dict__.pop("tessera_sequence", None)
        cache.__class__ = type(cache).__mro__[2]


def static(layer: Any) -> bool:
    """Whether a cache layer is allocated ahead."""
    return hasattr(layer, "max_cache_len")
