"""Two threads on one host: each sees its own images, also when their forwards alternate layer by layer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from tests.hosts.dropping import Drop, generated, kept, logits
from torch import Tensor

import tessera
from tessera.errors import TesseraError, UserError
from tessera.hosts.contract import Host
from tessera.hosts.part import HostPart, LayerView
from tessera.hosts.plug import part_named
from tessera.hosts.values import Tap
from tessera.hosts.zoo import tiny

PARTS: dict[str, Callable[[], HostPart]] = {
    "captured attention": lambda: Drop({2: 0.5, 4: 0.25}),
    "own attention": lambda: Drop({2: 0.5}, own=True),
    "attention of the tower": lambda: part_named("fopru", {"keep": 0.5}),
    "edited attention": lambda: part_named("attention_fix", {"cells": 2}),
    "positions": lambda: Drop({2: 0.5}, positions="reindex"),
}


class Meet(HostPart):
    """In front of every layer, both threads wait for each other."""

    def __init__(self) -> None:
        super().__init__(None)
        self.barrier: threading.Barrier | None = None

    def transform(self, view: LayerView) -> None:
        if self.barrier is not None:
            self.barrier.wait()


@pytest.mark.parametrize(
    ("family", "name"), [*(("llava", name) for name in PARTS), ("qwen2_5_vl", "captured attention"), ("gemma3", "own attention")]
)
def test_threads_that_alternate_keep_to_themselves(family: str, name: str) -> None:
    made, meet = tiny(family), Meet()
    both = [made.inputs((1, 1)), made.inputs((2, 1), seed=3)]
    with tessera.plug(made.model, PARTS[name](), meet):
        alone = [generated(made.model, inputs) for inputs in both]
        meet.barrier = threading.Barrier(2, timeout=60)
        with ThreadPoolExecutor(2) as pool:
            mixed = list(pool.map(lambda inputs: generated(made.model, inputs), both))
    for wanted, found in zip(alone, mixed, strict=True):
        assert torch.equal(wanted[0], found[0]) and torch.equal(wanted[1], found[1])


def test_a_layer_that_another_thread_computes_again_finds_its_forward() -> None:
    """As autograd does with activation checkpointing on devices whose backward has threads of its own."""
    made = tiny("llava")
    model, inputs = made.model, made.inputs((1, 1))
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def again() -> Tensor:
        args, kwargs = given[0]
        with torch.no_grad():
            output = host.layers[3](*args, **kwargs)
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found

    with tessera.plug(model, Drop({2: 0.5})) as host, ThreadPoolExecutor(1) as other:
        handle = host.layers[3].register_forward_pre_hook(
            lambda module, args, kwargs: given.append((args, kwargs)), with_kwargs=True, prepend=True
        )
        logits(model, inputs, use_cache=False)
        handle.remove()
        assert host.prefilled is not None
        width = kept(host.prefilled)[3]
        assert (
            torch.equal(other.submit(again).result(), again())
            and again().shape[1] == width < given[0][1]["attention_mask"].shape[-1]
        )
        with ThreadPoolExecutor(1) as second:
            second.submit(logits, model, inputs, use_cache=False).result()
            with pytest.raises(UserError, match="several threads use this host"):
                other.submit(again).result()


def test_what_runs_aside_leaves_no_trace() -> None:
    made = tiny("llava")
    with tessera.plug(made.model, Drop({2: 0.5})) as host:
        logits(made.model, made.inputs((1, 1)))
        before = (host.current, host.sequence, host.prefilled, host.prefill)
        with host.aside():
            logits(made.model, made.inputs((2, 1), seed=3))
            assert host.sequence is not before[1]
        assert (host.current, host.sequence, host.prefilled, host.prefill) == before


def test_a_view_answers_for_its_own_part_and_boundary_also_later() -> None:
    """Two parts that tap different layers, asked when both have been shown the same boundary."""
    made = tiny("llava")
    views: dict[int, LayerView] = {}

    class Keeps(HostPart):
        def __init__(self, tapped: int) -> None:
            super().__init__(None)
            self.tapped = tapped

        def language_taps(self, host: Host) -> Mapping[int, Tap]:
            return {self.tapped: "last"}

        def select(self, view: LayerView) -> None:
            if view.layer == 3:
                views[self.tapped] = view
                now[self.tapped] = view.attention(self.tapped)

    now: dict[int, Tensor] = {}
    with tessera.plug(made.model, Drop({2: 0.5}), Keeps(1), Keeps(2)):
        logits(made.model, made.inputs((1, 1)))
        for tapped, view in views.items():
            assert torch.equal(view.attention(tapped), now[tapped])
            with pytest.raises(TesseraError, match="does not tap"):
                view.attention(3 - tapped)
    assert now[1].shape == now[2].shape and not torch.equal(now[1], now[2])
