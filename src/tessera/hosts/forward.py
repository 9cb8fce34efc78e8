"""The state of a host's forwards: one object per thread, replaced as a whole.

What belongs to a sequence is attached to its cache (`tessera.hosts.caches`). What belongs to the forward that runs is kept here,
apart for each thread, so that two threads may use one host.

Legend: B rows, S tokens of the prompt, K tokens left at a layer, K' those that go on.
"""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from torch import Tensor, nn

from tessera.errors import UserError
from tessera.hosts.prompts import Prompt
from tessera.hosts.remap import Memo
from tessera.hosts.sequence import Sequence, TokenStage

ModelCall: TypeAlias = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
"""A module and the arguments that it was called with."""


@dataclass(slots=True, eq=False)
class RotaryCall:
    """One call of the rotary module in a forward: its arguments, the positions it was given, what it returned."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    positions: Tensor
    output: Any = None

    def arguments(self, positions: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same arguments with other positions."""
        if "position_ids" in self.kwargs:
            return self.args, {**self.kwargs, "position_ids": positions}
        return (self.args[0], positions, *self.args[2:]), self.kwargs


@dataclass(frozen=True, slots=True, eq=False)
class Applied:
    """What was done at a boundary, for a layer that activation checkpointing computes again.

    part   number of the plugged part to ask for merged states, None if it changed none
    order  [B, K'] places of the tokens that go on, None if all do
    """

    part: int | None
    order: Tensor | None
    stage: TokenStage


@dataclass(slots=True, eq=False)
class ForwardPass:
    """One forward of the language model.

    stage     the tokens of the layer that runs
    captured  what taps caught: (layer, kind) -> (the tokens of that layer, probabilities)
    applied   what was done at each boundary that selected
    """

    sequence: Sequence
    prefill: bool
    stage: TokenStage
    memo: Memo = field(default_factory=list)
    rotary_calls: list[RotaryCall] = field(default_factory=list)
    captured: dict[tuple[int, str], tuple[TokenStage, Tensor]] = field(default_factory=dict)
    applied: dict[int, list[Applied]] = field(default_factory=dict)


@dataclass(slots=True, eq=False)
class ProbeRequest:
    """A layer's attention of the tokens `query` [B] (int64, pruned indices) is wanted; `found` [B, K] float32 is it."""

    query: Tensor
    found: Tensor | None = None


@dataclass(slots=True, weakref_slot=True, eq=False)
class HostState:
    """What one thread has done with a host.

    prompt     what is known of the next prefill
    current    the forward that runs, or ran last
    prefilled  the sequence of the last prefill, and `example` the call that it came from
    replayed   a sequence whose decisions are taken again, see `TransformersHost.replay`
    probe      a layer attends out of turn, for scores alone
    """

    prompt: Prompt
    current: ForwardPass | None = None
    prefilled: Sequence | None = None
    example: ModelCall | None = None
    replayed: Sequence | None = None
    probe: ProbeRequest | None = None


class _Own(threading.local):
    state: HostState | None = None


class ThreadStates:
    """The state of every thread that uses a host."""

    def __init__(self, begin: Callable[[], Prompt]) -> None:
        """begin: makes the prompt of a thread that is new."""
        self._begin = begin
        self._own = _Own()
        self._known: weakref.WeakSet[HostState] = weakref.WeakSet()

    def own(self) -> HostState:
        """This thread's state."""
        state = self._own.state
        if state is None:
            state = self._own.state = HostState(self._begin())
            self._known.add(state)
        return state

    def here(self) -> HostState:
        """The state of the forward that this thread computes. Activation checkpointing may compute layers again on a thread of
        autograd's own, which has none: it is that of the one thread which has.

        Raises `UserError` if several have.
        """
        if self._own.state is not None:
            return self._own.state
        running = [state for state in self._known if state.current is not None]
        if len(running) > 1:
            raise UserError(
                "layers are computed again on a thread of autograd's while several threads use this host, so it is not known "
                "whose they are: train in one thread, or without activation checkpointing."
            )
        return running[0] if running else self.own()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """What this thread does meanwhile leaves no trace in its state."""
        before = self.own()
        self._own.state = replace(before, prompt=copy.copy(before.prompt))
        try:
            yield
        finally:
            self._own.state = before
